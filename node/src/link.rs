//! `/link` of the admin face: what speed the node's link is shaped to, and, where `--link-admin` allows it, another one.
//! For measurements over a running cluster.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use transport::LinkShaper;

/// The link, in both directions of the route.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Gigabits (10^9 bits) per second; 0 is unshaped.
    pub gbps: f64,
}

/// The route; `PUT` only where the node may be told.
pub(crate) fn routes(shaper: LinkShaper, may_change: bool) -> Router {
    let route = if may_change { get(show).put(change) } else { get(show) };
    Router::new().route("/link", route).with_state(shaper)
}

async fn show(State(shaper): State<LinkShaper>) -> Json<Link> {
    Json(Link { gbps: shaper.gbps().unwrap_or(0.0) })
}

async fn change(State(shaper): State<LinkShaper>, Json(link): Json<Link>) -> Response {
    if !(link.gbps.is_finite() && link.gbps >= 0.0) {
        return (StatusCode::BAD_REQUEST, format!("{} is no speed in Gb/s; 0 is unshaped", link.gbps))
            .into_response();
    }
    shaper.set_gbps(link.gbps);
    tracing::info!(gbps = link.gbps, "the link was shaped anew");
    show(State(shaper)).await.into_response()
}
