//! From an HTTP request to an [`Ask`]: the body within its deadline and its size, a place among those that are served, and
//! prompts as tokens that fit the model.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use bytes::Bytes;
use openai::{InvalidRequest, KvHandover, Prompt, Tokenizer};
use tokio::sync::OwnedSemaphorePermit;

use super::ask::{Ask, Pins};
use super::{Kind, chat, completions};
use crate::app::App;
use crate::error::Error;
use crate::handover;

/// Sequences of one request that run at once; the others wait for these.
const AT_ONCE: usize = 16;
/// Header that asks for the transfer's report, for clients that cannot add a field to the body.
const REPORT_HEADER: &str = "x-kv-transfer";
/// Header that names the prefill node, as llm-d's router sets it.
const PREFILL_HEADER: &str = "x-prefiller-host-port";
/// Headers that name a conversation, in the order in which they count.
const SESSION_HEADERS: [&str; 2] = ["x-session-id", "x-correlation-id"];
/// Longest value of a header that is looked at, in bytes.
const MAX_HEADER_BYTES: usize = 256;
/// Texts up to this many bytes are tokenized in well under a millisecond; longer ones get a thread that may block.
const TOKENIZE_INLINE_BYTES: usize = 4096;

/// Reads a request up to the point where it can be run.
pub(super) async fn ask(app: &App, request: Request, kind: Kind) -> Result<Ask, Error> {
    let headers = Headers::of(request.headers());
    let body = read_body(app, request).await?;
    let (mut ask, params) = match kind {
        Kind::Completion => completions::ask(app, &body, headers.pins).await?,
        Kind::Chat => chat::ask(app, &body, headers.pins).await?,
    };
    ask.kv.report |= headers.report;
    let params = params.filter(|_| app.handover.is_taken);
    let asked = params.map(KvHandover::read).transpose()?.flatten();
    app.handover.check_role(asked.as_ref())?;
    if let Some(asked) = asked {
        ask.kept = handover::check(&ask, &asked)?;
        ask.keeps = asked == KvHandover::Keep;
    }
    Ok(ask)
}

struct Headers {
    report: bool,
    pins: Pins,
}

impl Headers {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
            value.filter(|value| (1..=MAX_HEADER_BYTES).contains(&value.len())).map(str::to_owned)
        };
        let report = text(REPORT_HEADER).is_some_and(|value| value == "1" || value == "true");
        let session = SESSION_HEADERS.into_iter().find_map(text);
        Self { report, pins: Pins { prefill: text(PREFILL_HEADER), session } }
    }
}

/// The body, within its deadline and its size.
pub(super) async fn read_body(app: &App, request: Request) -> Result<Bytes, Error> {
    let deadline = app.client_deadline;
    let late = |_elapsed| Error::BodyLate { seconds: deadline.as_secs_f64() };
    let read = tokio::time::timeout(deadline, Bytes::from_request(request, &())).await.map_err(late)?;
    read.map_err(|rejection| match rejection.status().as_u16() {
        413 => Error::BodyTooLarge { limit: app.max_body_bytes },
        _ => Error::BodyBroken { reason: rejection.body_text() },
    })
}

/// Refuses another model than the served one.
pub(super) fn check_model(app: &App, asked: &str) -> Result<(), Error> {
    if asked == app.served_name {
        return Ok(());
    }
    Err(Error::UnknownModel { asked: asked.to_owned(), served: app.served_name.clone() })
}

/// Places for a request of so many sequences: one for each that runs at once.
pub(super) fn take_places(app: &App, sequences: usize) -> Result<OwnedSemaphorePermit, Error> {
    let overloaded = |_| Error::Overloaded { limit: app.max_requests };
    let wanted = sequences.clamp(1, AT_ONCE).min(app.max_requests as usize);
    let wanted = u32::try_from(wanted).unwrap_or(app.max_requests);
    Arc::clone(&app.places).try_acquire_many_owned(wanted).map_err(overloaded)
}

/// A prompt as tokens. Texts that cannot fit are refused by their length in bytes, before any work.
pub(super) async fn tokenize(app: &App, prompt: Prompt, with_begin: bool) -> Result<Vec<u32>, Error> {
    match prompt {
        Prompt::Text(text) => {
            let at_least = app.tokenizer.min_tokens(text.len());
            if at_least > app.max_model_len as usize {
                return Err(Error::PromptTooLong { context: app.max_model_len, at_least });
            }
            encode(&app.tokenizer, text, with_begin).await
        }
        Prompt::Tokens(ids) => {
            app.tokenizer.check(&ids)?;
            Ok(ids)
        }
        _ => Err(Error::Internal { reason: "a kind of prompt that this release does not know".into() }),
    }
}

/// A text as tokens, on a thread that may block where it is long.
pub(super) async fn encode(tokenizer: &Tokenizer, text: String, with_begin: bool) -> Result<Vec<u32>, Error> {
    let encode = move |tokenizer: &Tokenizer, text: &str| match with_begin {
        true => tokenizer.encode(text),
        false => tokenizer.encode_plain(text),
    };
    if text.len() <= TOKENIZE_INLINE_BYTES {
        return Ok(encode(tokenizer, &text)?);
    }
    let tokenizer = tokenizer.clone();
    let encoded = tokio::task::spawn_blocking(move || encode(&tokenizer, &text)).await;
    Ok(encoded.map_err(|error| Error::Internal { reason: format!("tokenizer: {error}") })??)
}

/// Length of the prompt, if it fits the context together with what is to be generated.
pub(super) fn check_context(context: u32, prompt: usize, max: u32) -> Result<u32, Error> {
    let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
    if prompt == 0 {
        let param = "prompt".to_owned();
        return Err(InvalidRequest::Missing { param, expected: "a text of one token at least" }.into());
    }
    match prompt.checked_add(max) {
        Some(needed) if needed <= context => Ok(prompt),
        _ => Err(Error::ContextExceeded { context, prompt, max }),
    }
}
