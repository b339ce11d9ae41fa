//! Routes, limits, layers. What a route does is in its own file.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use openai::response::{Object, unix_seconds};
use openai::{ChatTemplate, ModelCard, ModelList, Tokenizer};
use service::build::{BUILD, BuildInfo};
use service::{Readiness, Registry, Shutdown, admin};
use tokio::sync::Semaphore;
use tower_http::cors::CorsLayer;
use tracing::{Instrument, info_span};
use transport::ids::RequestId;
use uuid::Uuid;

use crate::access::{self, Keys};
use crate::api;
use crate::board::{self, Feed};
use crate::config::Config;
use crate::error::Error;
use crate::handover::Rules;
use crate::metrics::Metrics;
use crate::model::RouterModel;
use crate::openapi;
use crate::page;
use crate::relay::Relay;
use crate::trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken from a client, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) served_name: String,
    pub(crate) max_model_len: u32,
    pub(crate) max_body_bytes: u32,
    pub(crate) max_requests: u32,
    pub(crate) client_deadline: Duration,
    /// Tokens generated at most for a chat request that does not say.
    pub(crate) chat_max_tokens: u32,
    pub(crate) tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    /// One permit per request served at once.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) relay: Relay,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) handover: Rules,
    /// What the page at `/` shows.
    pub(crate) feed: Feed,
    created: u64,
}

/// What is read from the model directory to turn text into tokens.
#[derive(Debug)]
pub(crate) struct TextModel {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: Option<ChatTemplate>,
}

impl App {
    pub(crate) fn new(
        config: &Config,
        model: &RouterModel,
        text: TextModel,
        relay: Relay,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            served_name: model.served_name.clone(),
            max_model_len: model.max_model_len,
            max_body_bytes: config.max_body_bytes,
            max_requests: config.max_requests,
            client_deadline: config.client_seconds,
            chat_max_tokens: config.chat_max_tokens,
            tokenizer: text.tokenizer,
            chat_template: text.chat_template,
            feed: Feed::new(metrics.board.clone(), relay.cluster().clone(), model),
            places: Arc::new(Semaphore::new(config.max_requests as usize)),
            handover: Rules { is_taken: config.kv_transfer_params, face_of: config.face_of },
            relay,
            metrics,
            shutdown,
            created: unix_seconds(),
        }
    }

    /// The model's chat template, if it has one.
    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate, Error> {
        self.chat_template.as_ref().ok_or(Error::NoChatTemplate)
    }
}

/// The HTTP service. Keys guard what costs work or tells of it; probes, metrics and descriptions are open.
pub(crate) fn app(app: Arc<App>, readiness: Readiness, registry: Registry, access: Access) -> Router {
    let body_limit = DefaultBodyLimit::max(app.max_body_bytes as usize);
    let guarded = api::routes()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/board", get(board::show))
        .route("/board/events", get(board::events))
        .layer(middleware::from_fn_with_state(access.keys, access::guard));
    Router::new()
        .merge(guarded)
        .merge(openapi::routes(&app.served_name))
        .merge(page::routes())
        .route("/version", get(version))
        .merge(admin::routes(readiness, registry))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(body_limit)
        .layer(access.cors)
        .layer(middleware::from_fn(name_request))
        .with_state(app)
}

/// Who may call.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) keys: Option<Keys>,
    pub(crate) cors: CorsLayer,
}

fn card(app: &App) -> ModelCard {
    ModelCard {
        id: app.served_name.clone(),
        object: Object::Model,
        created: app.created,
        owned_by: "kvferry".to_owned(),
        max_model_len: app.max_model_len,
    }
}

async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList::from(vec![card(&app)]))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, Error> {
    if id != app.served_name {
        return Err(Error::UnknownModel { asked: id, served: app.served_name.clone() });
    }
    Ok(Json(card(&app)))
}

async fn version() -> Json<BuildInfo> {
    Json(BUILD.clone())
}

async fn unknown_route(request: Request) -> Response {
    Error::UnknownRoute { path: request.uri().path().to_owned() }.into_response()
}

async fn wrong_method(request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    Error::WrongMethod { method, path }.into_response()
}

/// Gives each request a name that is in its logs, in the cluster's messages and in the answer: the client's own where
/// it sent one. Nodes know requests by UUIDs, so another kind of name stays between client and router.
async fn name_request(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let given = given.filter(|name| (1..=MAX_REQUEST_ID_BYTES).contains(&name.len())).map(str::to_owned);
    let id = given
        .as_deref()
        .and_then(|name| Uuid::try_parse(name).ok())
        .map_or_else(RequestId::random, RequestId);
    let name = given.unwrap_or_else(|| id.to_string());
    request.extensions_mut().insert(id);
    let span = info_span!("request", request_id = %id, client_id = (name != id.to_string()).then_some(&name));
    let traced = span.in_scope(|| trace::of_request(&request, id));
    let mut response = next.run(request).instrument(traced).instrument(span).await;
    if let Ok(value) = HeaderValue::try_from(name) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
