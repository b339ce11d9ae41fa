//! Everything that can be wrong with a request, and the one place where it becomes an HTTP status, an error object and
//! a metric label.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use openai::chat::RenderError;
use openai::tokenizer::EncodeError;
use openai::{ApiError, ErrorBody, InvalidRequest};
use transport::message::{FailureKind, Role};

use crate::handover::TicketError;
use crate::leg::{Cause, NodeError};
use crate::policy::Unplaceable;

/// Seconds after which a client may try again: requests take seconds, and so do nodes that come back.
const RETRY_AFTER_SECONDS: u16 = 1;

/// Why a request is not answered with a completion.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error("the body is longer than {limit} bytes; send a shorter prompt")]
    BodyTooLarge { limit: u32 },
    #[error("the body could not be read: {reason}")]
    BodyBroken { reason: String },
    #[error("the body was not complete within {seconds} seconds")]
    BodyLate { seconds: f64 },
    #[error("the model {asked:?} is not served here; served: {served:?}")]
    UnknownModel { asked: String, served: String },
    #[error("this server wants an API key that it knows, sent as \"Authorization: Bearer KEY\"")]
    Unauthorized,
    #[error("this model has no chat template, so it takes plain prompts only; send them to /v1/completions")]
    NoChatTemplate,
    #[error(transparent)]
    Chat(#[from] RenderError),
    #[error("there is nothing at {path}")]
    UnknownRoute { path: String },
    #[error("{path} does not take {method}")]
    WrongMethod { method: Method, path: String },
    #[error(transparent)]
    Prompt(#[from] EncodeError),
    #[error(
        "the model's context is {context} tokens, but the request needs {} ({prompt} in the prompt, {max} in max_tokens)",
        u64::from(*.prompt) + u64::from(*.max)
    )]
    ContextExceeded { context: u32, prompt: u32, max: u32 },
    #[error("the model's context is {context} tokens, but the prompt has {at_least} at least")]
    PromptTooLong { context: u32, at_least: usize },
    #[error("{limit} requests are being served, which is the limit; try again later")]
    Overloaded { limit: u32 },
    #[error("{limit} clients follow the board, which is the limit; ask for /board now and then instead")]
    TooManyListeners { limit: usize },
    #[error(transparent)]
    Unplaceable(#[from] Unplaceable),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error("{}", other_node(*.role))]
    OtherNode { role: Role },
    #[error("the router is shutting down; try again elsewhere")]
    Draining,
    #[error("internal fault: {reason}")]
    Internal { reason: String },
}

/// An error as the world outside sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Face {
    pub(crate) status: StatusCode,
    /// The error object's `type`.
    pub(crate) kind: &'static str,
    /// The error object's `code`, and the metric label.
    pub(crate) code: &'static str,
    /// Whether the client is told when to try again.
    pub(crate) retry: bool,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const UNAVAILABLE: &str = "service_unavailable";

impl Error {
    /// Status, type, code, and whether to try again.
    pub(crate) fn face(&self) -> Face {
        use StatusCode as S;
        let face = |status, kind, code, retry| Face { status, kind, code, retry };
        match self {
            Self::Invalid(error) => face(S::BAD_REQUEST, INVALID, error.code(), false),
            Self::BodyTooLarge { .. } => face(S::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", false),
            Self::BodyBroken { .. } => face(S::BAD_REQUEST, INVALID, "body_broken", false),
            Self::BodyLate { .. } => face(S::REQUEST_TIMEOUT, INVALID, "body_late", false),
            Self::UnknownModel { .. } => face(S::NOT_FOUND, INVALID, "model_not_found", false),
            Self::Unauthorized => face(S::UNAUTHORIZED, INVALID, "invalid_api_key", false),
            Self::NoChatTemplate => face(S::BAD_REQUEST, INVALID, "no_chat_template", false),
            Self::Chat(_) => face(S::BAD_REQUEST, INVALID, "invalid_messages", false),
            Self::Unplaceable(Unplaceable::NoSuchPrefill { .. }) => {
                face(S::BAD_REQUEST, INVALID, "prefill_node_not_found", false)
            }
            Self::UnknownRoute { .. } => face(S::NOT_FOUND, INVALID, "not_found", false),
            Self::WrongMethod { .. } => face(S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", false),
            Self::Prompt(_) => face(S::BAD_REQUEST, INVALID, "invalid_prompt", false),
            Self::ContextExceeded { .. }
            | Self::PromptTooLong { .. }
            | Self::Unplaceable(Unplaceable::TooLong { .. }) => {
                face(S::BAD_REQUEST, INVALID, "context_length_exceeded", false)
            }
            Self::Unplaceable(Unplaceable::NoPlan) => {
                face(S::BAD_REQUEST, INVALID, "codec_unavailable", false)
            }
            Self::Unplaceable(Unplaceable::NoDecode | Unplaceable::NoPrefill) => {
                face(S::SERVICE_UNAVAILABLE, UNAVAILABLE, "no_node", true)
            }
            Self::Ticket(_) => face(S::BAD_REQUEST, INVALID, "kv_ticket_refused", false),
            Self::OtherNode { .. } => face(S::BAD_REQUEST, INVALID, "other_node", false),
            Self::Overloaded { .. } => {
                face(S::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", true)
            }
            Self::TooManyListeners { .. } => {
                face(S::SERVICE_UNAVAILABLE, UNAVAILABLE, "too_many_listeners", true)
            }
            Self::Draining => face(S::SERVICE_UNAVAILABLE, UNAVAILABLE, "draining", true),
            Self::Internal { .. } => face(S::INTERNAL_SERVER_ERROR, SERVER, "internal", false),
            Self::Node(NodeError { cause, .. }) => match cause {
                Cause::Failed(failure) => match failure.kind {
                    FailureKind::Invalid => face(S::BAD_REQUEST, INVALID, "node_refused", false),
                    FailureKind::Busy => face(S::TOO_MANY_REQUESTS, "rate_limit_error", "node_busy", true),
                    FailureKind::Timeout => face(S::GATEWAY_TIMEOUT, SERVER, "node_timeout", true),
                    FailureKind::Transfer => face(S::BAD_GATEWAY, SERVER, "kv_transfer_failed", true),
                    FailureKind::Unreachable => face(S::BAD_GATEWAY, SERVER, "node_unreachable", true),
                    FailureKind::Draining => face(S::SERVICE_UNAVAILABLE, UNAVAILABLE, "node_draining", true),
                    FailureKind::Internal => face(S::INTERNAL_SERVER_ERROR, SERVER, "node_internal", false),
                },
                Cause::Lost(_) => face(S::BAD_GATEWAY, SERVER, "node_lost", true),
                Cause::Deadline { .. } => face(S::GATEWAY_TIMEOUT, SERVER, "deadline", true),
                Cause::Protocol(_) => face(S::BAD_GATEWAY, SERVER, "node_protocol", false),
            },
        }
    }

    /// The request's field at fault, if one is.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid(error) => error.param(),
            Self::UnknownModel { .. } => Some("model"),
            Self::Prompt(_) | Self::PromptTooLong { .. } => Some("prompt"),
            Self::ContextExceeded { context, prompt, .. } if prompt >= context => Some("prompt"),
            Self::ContextExceeded { .. } | Self::Unplaceable(Unplaceable::TooLong { .. }) => {
                Some("max_tokens")
            }
            Self::Unplaceable(Unplaceable::NoPlan) => Some("kv_codec"),
            Self::NoChatTemplate | Self::Chat(_) => Some("messages"),
            Self::Ticket(_) => Some("kv_transfer_params.kvferry_ticket"),
            Self::OtherNode { .. } => Some("kv_transfer_params"),
            Self::BodyTooLarge { .. }
            | Self::BodyBroken { .. }
            | Self::BodyLate { .. }
            | Self::UnknownRoute { .. }
            | Self::WrongMethod { .. }
            | Self::Unauthorized
            | Self::Overloaded { .. }
            | Self::TooManyListeners { .. }
            | Self::Unplaceable(
                Unplaceable::NoDecode | Unplaceable::NoPrefill | Unplaceable::NoSuchPrefill { .. },
            )
            | Self::Node(_)
            | Self::Draining
            | Self::Internal { .. } => None,
        }
    }

    /// The error object.
    pub(crate) fn body(&self) -> ErrorBody {
        let Face { kind, code, .. } = self.face();
        ErrorBody {
            error: ApiError {
                message: self.to_string(),
                kind: kind.to_owned(),
                param: self.param().map(str::to_owned),
                code: Some(code.to_owned()),
            },
        }
    }
}

/// What a node's own face says to those who want what another kind of node does.
fn other_node(role: Role) -> &'static str {
    match role {
        Role::Decode => {
            "this is a decode node: it keeps no caches for others; send do_remote_decode to a prefill node"
        }
        Role::Prefill | Role::Router => {
            "this is a prefill node: it runs prompts and generates nothing; send kv_transfer_params with do_remote_decode \
             true, and what it answers to a decode node; or ask a router, which does both"
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (&self).into_response()
    }
}

impl IntoResponse for &Error {
    fn into_response(self) -> Response {
        let Face { status, retry, .. } = self.face();
        let mut response = (status, Json(self.body())).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        response
    }
}
