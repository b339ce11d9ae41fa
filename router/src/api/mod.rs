//! The API's routes, one file each, and what they share: a body is read, checked and tokenized into an [`Ask`], its
//! sequences are run, and the answer goes out whole or as a stream.
//!
//! | file | holds |
//! |---|---|
//! | `completions`, `chat` | bodies to an [`Ask`] |
//! | `tokens` | `/tokenize` and `/detokenize` |
//! | `ask`, `intake` | what is asked for; reading, admitting and tokenizing it |
//! | `keep` | the answer to a prompt whose cache is kept |
//! | `answer`, `frame` | the running answer; how it is written |

mod answer;
mod ask;
mod chat;
mod completions;
mod frame;
mod intake;
mod keep;
mod tokens;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, post};
use tracing::{info, warn};
use transport::ids::RequestId;

pub(crate) use answer::Answer;
pub(crate) use ask::{Ask, Pins, TokenPrompt};
pub(crate) use frame::Frame;

use crate::app::App;
use crate::error::Error;
use crate::metrics::Record;
use crate::sequences::{Item, Sequences};
use crate::sse;

/// The routes that generate or tokenize.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
}

async fn completions(app: State<Arc<App>>, id: Extension<RequestId>, request: Request) -> Response {
    create(app, id, request, Kind::Completion).await
}

async fn chat(app: State<Arc<App>>, id: Extension<RequestId>, request: Request) -> Response {
    create(app, id, request, Kind::Chat).await
}

/// Which of the two ways of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Completion,
    Chat,
}

/// A request that has its first token.
enum Begun {
    /// And no more: its cache is kept.
    Kept(Response),
    Running(Box<Running>),
}

struct Running {
    stream: bool,
    frame: Frame,
    sequences: Sequences,
    first: Option<Item>,
}

/// Answers one request. Nothing is answered before its first token, so that what goes wrong until then has a status.
async fn create(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
    kind: Kind,
) -> Response {
    let mut record = app.metrics.request();
    let begin = async {
        let ask = intake::ask(&app, request, kind).await?;
        if ask.keeps {
            return Ok(Begun::Kept(keep::answer(&app, id, kind, ask, &mut record).await?));
        }
        let (stream, frame) = (ask.delivery.stream, Frame::new(kind, id, &ask));
        let mut sequences = Sequences::new(&app, id, ask, &record);
        let first = sequences.next().await?;
        Ok(Begun::Running(Box::new(Running { stream, frame, sequences, first })))
    };
    let begun = tokio::select! {
        begun = Box::pin(begin) => begun,
        () = app.shutdown.ended() => Err(Error::Draining),
    };
    match begun {
        Ok(Begun::Kept(response)) => response,
        Ok(Begun::Running(running)) => running.answer(&app, record).await,
        Err(error) => failed(&mut record, &error),
    }
}

impl Running {
    /// The rest of it, as it comes or as a whole.
    async fn answer(self, app: &App, record: Record) -> Response {
        let answer = Answer::new(self.sequences, self.first, self.frame, record);
        if self.stream {
            let token_seconds = app.metrics.token_seconds.clone();
            return sse::respond(answer, &app.shutdown, app.client_deadline, token_seconds);
        }
        tokio::select! {
            response = answer.whole() => response,
            () = app.shutdown.ended() => Error::Draining.into_response(),
        }
    }
}

/// The answer to a request of which the client has seen nothing yet.
fn failed(record: &mut Record, error: &Error) -> Response {
    let face = error.face();
    record.end(face.code, face.status.as_u16());
    if face.status.is_server_error() {
        warn!(%error, code = face.code, "failed");
    } else {
        info!(%error, code = face.code, "refused");
    }
    error.into_response()
}
