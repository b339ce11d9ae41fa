//! The description of the API at `/openapi.json`.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use service::build::BUILD;

use crate::app::App;

const DESCRIPTION: &str = include_str!("openapi.json");
/// What stands in it for what only this router knows.
const SERVED_MODEL: &str = "\"SERVED_MODEL\"";
const VERSION: &str = "\"VERSION\"";

pub(crate) fn routes(served_name: &str) -> Router<Arc<App>> {
    let description = description(served_name);
    let answer = async move || -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], description).into_response()
    };
    Router::new().route("/openapi.json", get(answer))
}

/// The description with this router's version, and the one model that requests can name.
fn description(served_name: &str) -> Bytes {
    let quoted = |text: &str| Value::from(text).to_string();
    DESCRIPTION.replace(SERVED_MODEL, &quoted(served_name)).replace(VERSION, &quoted(BUILD.version)).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_names_the_served_model_and_the_version() {
        let whole: Value = serde_json::from_slice(&description("a/\"b\"")).unwrap();
        assert_eq!(whole["info"]["version"], BUILD.version);
        for request in ["CompletionRequest", "ChatRequest"] {
            let schema = &whole["components"]["schemas"][request];
            assert_eq!(schema["properties"]["model"]["enum"], json!(["a/\"b\""]), "{request}");
            assert!(schema["required"].as_array().unwrap().contains(&json!("model")), "{request}");
        }
    }
}
