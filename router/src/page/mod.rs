//! The page at `/`: a playground for the API and the board as it changes; and the API's description for people at `/docs`. Their files are part of the program; nothing
//! comes from elsewhere, and the browser is told to load nothing from elsewhere.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Files of our own origin and nothing else, in scripts, styles, requests and pictures; not inside another page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// A file of the pages.
#[derive(Debug)]
struct Asset {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// An entry of [`ASSETS`] for a file of the directory `assets`.
macro_rules! asset {
    ($name:literal, $kind:ident) => {
        Asset { path: concat!("/page/", $name), kind: $kind, text: include_str!(concat!("assets/", $name)) }
    };
}

static ASSETS: &[Asset] = &[
    Asset { path: "/", kind: HTML, text: include_str!("assets/index.html") },
    Asset { path: "/docs", kind: HTML, text: include_str!("assets/docs.html") },
    asset!("icon.svg", PICTURE),
    asset!("base.css", STYLE),
    asset!("page.css", STYLE),
    asset!("docs.css", STYLE),
    asset!("theme.js", SCRIPT),
    asset!("main.js", SCRIPT),
    asset!("docs.js", SCRIPT),
    asset!("dom.js", SCRIPT),
    asset!("bars.js", SCRIPT),
    asset!("api.js", SCRIPT),
    asset!("samples.js", SCRIPT),
    asset!("answer.js", SCRIPT),
    asset!("playground.js", SCRIPT),
    asset!("board.js", SCRIPT),
    asset!("nodes.js", SCRIPT),
    asset!("totals.js", SCRIPT),
    asset!("requests.js", SCRIPT),
];

/// A route for each file.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let tag = tag(asset.text);
        router.route(asset.path, get(async move |headers: HeaderMap| answer(asset, &tag, &headers)))
    })
}

/// The file, or only the word that it has not changed. Browsers ask each time, so that a new release is seen at once.
fn answer(asset: &Asset, tag: &str, asked: &HeaderMap) -> Response {
    let known = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known =
        known.is_some_and(|tags| tags.split(',').any(|one| one.trim() == tag || one.trim() == "*"));
    let mut response =
        if is_known { StatusCode::NOT_MODIFIED.into_response() } else { asset.text.into_response() };
    let headers = response.headers_mut();
    if !is_known {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    }
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    for (name, value) in fixed_headers() {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn fixed_headers() -> [(HeaderName, &'static str); 4] {
    [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]
}

/// An entity tag: equal for equal texts, which is all that is asked of it.
fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}
