//! `POST /v1/completions`: from the body to a generation that has its first token, and from there to the answer.

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use openai::{Choice, Completion, CompletionRequest, Prompt, StopMatcher};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info, warn};
use transport::ids::RequestId;
use transport::message::Sampling;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::generation::{Generation, Limits, Piece};
use crate::metrics::Record;
use crate::relay::Job;
use crate::sse;

/// Header that asks for the transfer's report, for clients that cannot add a field to the body.
const REPORT_HEADER: &str = "x-kv-transfer";
/// Texts up to this many bytes are tokenized in well under a millisecond; longer ones get a thread that may block.
const TOKENIZE_INLINE_BYTES: usize = 4096;

/// A request that has its first token, and all that is needed to answer it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) generation: Generation,
    /// What the answer and all chunks have in common.
    pub(crate) frame: Completion,
    pub(crate) include_usage: bool,
    pub(crate) report_transfer: bool,
    record: Record,
    /// The request's place among those that are served at once.
    _permit: OwnedSemaphorePermit,
}

impl Answer {
    /// The client gets everything.
    pub(crate) fn succeeded(&mut self) {
        self.record.end("ok", 200);
        let (usage, transfer) = (self.generation.usage(), self.generation.transfer());
        info!(
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            codec = transfer.codec.as_deref().unwrap_or("none"),
            ratio = transfer.ratio,
            ttft_ms = transfer.ttft_ms,
            total_ms = self.record.elapsed().as_secs_f64() * 1e3,
            "completed"
        );
    }

    /// The client, which has seen the answer begin, is told that it failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.record.end(error.face().code, 200);
        warn!(%error, "failed after the first token");
    }
}

/// Answers one request.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    let mut record = app.metrics.request();
    let outcome = tokio::select! {
        outcome = Box::pin(begin(&app, id, request, &record)) => outcome,
        () = app.shutdown.ended() => Err(Error::Draining),
    };
    match outcome {
        Ok(Begun { generation, permit, wants }) => {
            let Wants { model, stream, include_usage, report_transfer } = wants;
            let frame = Completion::new(id.0, &model);
            let answer =
                Answer { generation, frame, include_usage, report_transfer, record, _permit: permit };
            if stream {
                return sse::respond(answer, &app.shutdown, app.client_deadline);
            }
            tokio::select! {
                response = whole(answer) => response,
                () = app.shutdown.ended() => Error::Draining.into_response(),
            }
        }
        Err(error) => {
            let face = error.face();
            record.end(face.code, face.status.as_u16());
            if face.status.is_server_error() {
                warn!(%error, code = face.code, "failed");
            } else {
                info!(%error, code = face.code, "refused");
            }
            error.into_response()
        }
    }
}

/// A generation with its first token, and how the client wants to have it.
struct Begun {
    generation: Generation,
    permit: OwnedSemaphorePermit,
    wants: Wants,
}

struct Wants {
    model: String,
    stream: bool,
    include_usage: bool,
    report_transfer: bool,
}

/// Everything up to the first token. A place is taken before the prompt is tokenized, which costs time.
async fn begin(app: &App, id: RequestId, request: Request, record: &Record) -> Result<Begun, Error> {
    let report_header = asks_for_report(request.headers());
    let body = read_body(app, request).await?;
    let request = CompletionRequest::parse(&body)?;
    if request.model != app.served_name {
        return Err(Error::UnknownModel { asked: request.model, served: app.served_name.clone() });
    }
    let permit = take_place(app)?;
    let Prompt::Text(text) = request.prompt else {
        return Err(Error::Internal { reason: "a kind of prompt that this release does not know".into() });
    };
    let token_ids = tokenize(app, text).await?;
    debug!(tokens = token_ids.len(), "tokenized");
    let prompt_tokens = check_context(app.max_model_len, token_ids.len(), request.max_tokens)?;
    let sampling = Sampling {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed.unwrap_or_else(fresh_seed),
        ignore_eos: request.ignore_eos,
        ..Sampling::default()
    };
    let (max_tokens, kv) = (request.max_tokens, request.kv);
    let job = Job { request: id, token_ids, max_tokens, sampling, kv };
    let tokens = app.relay.begin(&job).await?;
    let limits = Limits { arrived: record.arrived(), prompt_tokens, max_tokens };
    let (detokenizer, stop) = (app.tokenizer.detokenizer(), StopMatcher::new(request.stop));
    let wants = Wants {
        model: request.model,
        stream: request.stream,
        include_usage: request.include_usage,
        report_transfer: kv.report || report_header,
    };
    Ok(Begun {
        generation: Generation::new(tokens, limits, detokenizer, stop, app.metrics.clone()),
        permit,
        wants,
    })
}

async fn read_body(app: &App, request: Request) -> Result<Bytes, Error> {
    let deadline = app.client_deadline;
    let late = |_elapsed| Error::BodyLate { seconds: deadline.as_secs_f64() };
    let read = tokio::time::timeout(deadline, Bytes::from_request(request, &())).await.map_err(late)?;
    read.map_err(|rejection| match rejection.status().as_u16() {
        413 => Error::BodyTooLarge { limit: app.max_body_bytes },
        _ => Error::BodyBroken { reason: rejection.body_text() },
    })
}

fn take_place(app: &App) -> Result<OwnedSemaphorePermit, Error> {
    let overloaded = |_| Error::Overloaded { limit: app.max_requests };
    Arc::clone(&app.places).try_acquire_owned().map_err(overloaded)
}

/// Prompts that cannot fit are refused by their length in bytes, before any work.
async fn tokenize(app: &App, text: String) -> Result<Vec<u32>, Error> {
    let at_least = app.tokenizer.min_tokens(text.len());
    if at_least > app.max_model_len as usize {
        return Err(Error::PromptTooLong { context: app.max_model_len, at_least });
    }
    if text.len() <= TOKENIZE_INLINE_BYTES {
        return Ok(app.tokenizer.encode(&text)?);
    }
    let tokenizer = app.tokenizer.clone();
    let encoded = tokio::task::spawn_blocking(move || tokenizer.encode(&text)).await;
    Ok(encoded.map_err(|error| Error::Internal { reason: format!("tokenizer: {error}") })??)
}

/// Length of the prompt, if it fits the context together with what is to be generated.
fn check_context(context: u32, prompt: usize, max: u32) -> Result<u32, Error> {
    let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
    if prompt == 0 {
        let param = "prompt".to_owned();
        return Err(
            openai::InvalidRequest::Missing { param, expected: "a text of one token at least" }.into()
        );
    }
    match prompt.checked_add(max) {
        Some(needed) if needed <= context => Ok(prompt),
        _ => Err(Error::ContextExceeded { context, prompt, max }),
    }
}

fn asks_for_report(headers: &HeaderMap) -> bool {
    headers.get(REPORT_HEADER).is_some_and(|value| value == "1" || value == "true")
}

/// 64 of a random UUID's 122 random bits.
fn fresh_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

/// Collects the whole answer.
async fn whole(mut answer: Answer) -> Response {
    let mut whole = String::new();
    loop {
        match answer.generation.next().await {
            Ok(Piece::Text(text)) => whole.push_str(&text),
            Ok(Piece::End(text, reason)) => {
                whole.push_str(&text);
                answer.succeeded();
                return Json(Completion {
                    choices: vec![Choice::new(whole, Some(reason))],
                    usage: Some(answer.generation.usage()),
                    kv_transfer: answer.report_transfer.then(|| answer.generation.transfer().clone()),
                    ..answer.frame.clone()
                })
                .into_response();
            }
            Err(error) => {
                let error = Error::Node(error);
                let face = error.face();
                answer.record.end(face.code, face.status.as_u16());
                warn!(%error, code = face.code, "failed");
                return error.into_response();
            }
        }
    }
}
