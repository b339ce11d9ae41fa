//! The description of the API at `/openapi.json`, and a page at `/docs` that shows it to people.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use serde_json::{Value, json};
use service::build::BUILD;

use crate::app::App;

const DESCRIPTION: &str = include_str!("openapi.json");
const PAGE: &str = include_str!("docs.html");
/// The page runs its own script and fetches nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Requests in it name a model by one of these schemas.
const REQUESTS: [&str; 2] = ["CompletionRequest", "ChatRequest"];

pub(crate) fn routes(served_name: &str) -> Router<Arc<App>> {
    let description = description(served_name);
    let answer = async move || -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], description).into_response()
    };
    Router::new().route("/openapi.json", get(answer)).route("/docs", get(page))
}

/// The description with what only this router knows: its version, and the one model that can be named.
fn description(served_name: &str) -> Bytes {
    let mut whole: Value = serde_json::from_str(DESCRIPTION).expect("a test reads it; this is a bug");
    whole["info"]["version"] = BUILD.version.into();
    for request in REQUESTS {
        whole["components"]["schemas"][request]["properties"]["model"]["enum"] = json!([served_name]);
    }
    whole.to_string().into()
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_the_served_model() {
        let whole: Value = serde_json::from_slice(&description("a/b")).unwrap();
        for request in REQUESTS {
            let schema = &whole["components"]["schemas"][request];
            assert_eq!(schema["properties"]["model"]["enum"], json!(["a/b"]), "{request}");
            assert!(schema["required"].as_array().unwrap().contains(&json!("model")), "{request}");
        }
    }
}
