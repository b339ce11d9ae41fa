//! What a process tells about itself over HTTP: health, readiness, metrics. Not for requests of clients.
//!
//! `/live` answers 200 as long as the process can answer at all. `/ready` and `/health` answer 200 when it can take
//! work and 503 with the reason when it cannot; `/health` also says which build it is. `/metrics` is Prometheus text, or OpenMetrics for who
//! asks for it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::build::{BUILD, BuildInfo};
use crate::exposition::{OPEN_METRICS, PROMETHEUS, to_prometheus, wants_open_metrics};
use crate::metrics::Registry;
use crate::shutdown::Shutdown;

/// How long answers under way may take when everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Whether the process can take work, and if not, why; set by the process, read by probes. Clones share it.
#[derive(Debug, Clone)]
pub struct Readiness {
    reason: Arc<RwLock<Option<String>>>,
}

impl Readiness {
    /// Not ready yet: "starting".
    pub fn starting() -> Self {
        Self { reason: Arc::new(RwLock::new(Some("starting".into()))) }
    }

    /// Work can come.
    pub fn set_ready(&self) {
        *self.reason.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// No work can come, because of `reason`.
    pub fn set_unready(&self, reason: impl Into<String>) {
        *self.reason.write().unwrap_or_else(PoisonError::into_inner) = Some(reason.into());
    }

    /// Why no work can come; none when it can.
    pub fn reason(&self) -> Option<String> {
        self.reason.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answer of `/health`, `/ready` and `/live`.
#[derive(Debug, Serialize)]
struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<BuildInfo>,
}

/// The four routes, to be served alone or merged into a process's own.
pub fn routes<S: Clone + Send + Sync + 'static>(readiness: Readiness, registry: Registry) -> Router<S> {
    Router::new()
        .route("/health", get(health).with_state(readiness.clone()))
        .route("/ready", get(ready).with_state(readiness))
        .route("/live", get(live))
        .route("/metrics", get(metrics).with_state(registry))
}

/// Serves `routes` until the shutdown has ended, so that probes and scrapers see the drain to its last moment.
/// Answers under way then have a second to get out.
///
/// # Errors
/// What the listener said.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: &Shutdown) -> std::io::Result<()> {
    let (ended, late) = (shutdown.ended(), shutdown.ended());
    let served = axum::serve(listener, routes).with_graceful_shutdown(ended);
    tokio::select! {
        outcome = served => outcome,
        () = async { late.await; tokio::time::sleep(LAST_ANSWERS).await } => Ok(()),
    }
}

async fn health(State(readiness): State<Readiness>) -> Response {
    status(readiness.reason(), Some(BUILD.clone()))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    status(readiness.reason(), None)
}

async fn live() -> Response {
    status(None, None)
}

async fn metrics(State(registry): State<Registry>, headers: HeaderMap) -> Response {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let is_open = accepted.any(wants_open_metrics);
    match registry.encode() {
        Ok(encoded) if is_open => ([(header::CONTENT_TYPE, OPEN_METRICS)], encoded).into_response(),
        Ok(encoded) => ([(header::CONTENT_TYPE, PROMETHEUS)], to_prometheus(&encoded)).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}")).into_response()
        }
    }
}

fn status(reason: Option<String>, build: Option<BuildInfo>) -> Response {
    let (code, status) = match reason {
        None => (StatusCode::OK, "ok"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    (code, Json(Status { status, reason, build })).into_response()
}
