//! Who may call the API: whoever knows one of the keys, where there are keys; and web pages of which origins.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::error::Error;

/// How long a browser may remember what it was allowed.
const CORS_SECONDS: u64 = 600;
/// What pages may read of an answer's headers.
const EXPOSED: [HeaderName; 5] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-kv-raw-bytes"),
    HeaderName::from_static("x-kv-wire-bytes"),
    HeaderName::from_static("x-kv-ratio"),
    header::RETRY_AFTER,
];

/// The keys that open the API, as digests: comparing these tells nothing of a key by the time it takes.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    digests: Arc<HashSet<[u8; 32]>>,
}

/// Keys or origins that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The file of keys cannot be read.
    #[error(
        "cannot read the API keys from {path}: {source}; --api-key-file takes a text file with one key a line"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file without keys would lock everybody out.
    #[error("{path} holds no API key; write one a line, lines that begin with # are skipped")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not an origin.
    #[error("{origin:?} is no origin; --allowed-origins takes \"*\" or a list such as https://example.org")]
    Origin {
        /// What was given.
        origin: String,
    },
}

impl Keys {
    /// Reads keys from a file, one a line.
    pub(crate) fn load(path: &Path) -> Result<Self, AccessError> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|source| AccessError::Read { path: path.to_owned(), source })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let digests: HashSet<_> = lines.map(|key| *blake3::hash(key.as_bytes()).as_bytes()).collect();
        if digests.is_empty() {
            return Err(AccessError::Empty { path: path.to_owned() });
        }
        Ok(Self { digests: Arc::new(digests) })
    }

    /// Whether a request carries one of the keys (RFC 6750, section 2.1).
    fn admit(&self, request: &Request) -> bool {
        let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, key)) = value.and_then(|value| value.split_once(' ')) else { return false };
        let digest = *blake3::hash(key.trim().as_bytes()).as_bytes();
        scheme.eq_ignore_ascii_case("bearer") && self.digests.contains(&digest)
    }
}

/// Turns away requests without a key.
pub(crate) async fn guard(State(keys): State<Option<Keys>>, request: Request, next: Next) -> Response {
    match keys {
        Some(keys) if !keys.admit(&request) => Error::Unauthorized.into_response(),
        _ => next.run(request).await,
    }
}

/// What browsers are told of pages from elsewhere.
pub(crate) fn cors(origins: &[String]) -> Result<CorsLayer, AccessError> {
    let named: Vec<_> =
        origins.iter().map(|origin| origin.trim()).filter(|origin| !origin.is_empty()).collect();
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(tower_http::cors::Any)
        .expose_headers(EXPOSED)
        .max_age(std::time::Duration::from_secs(CORS_SECONDS));
    if named.contains(&"*") {
        return Ok(layer.allow_origin(tower_http::cors::Any));
    }
    let parse = |origin: &&str| {
        let is_origin = origin.starts_with("http://") || origin.starts_with("https://");
        let value = HeaderValue::try_from(*origin).ok().filter(|_| is_origin && !origin.ends_with('/'));
        value.ok_or_else(|| AccessError::Origin { origin: (*origin).to_owned() })
    };
    let origins: Vec<HeaderValue> = named.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(layer.allow_origin(AllowOrigin::list(origins)))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(authorization: &str) -> Request {
        Request::builder().header("authorization", authorization).body(Body::empty()).unwrap()
    }

    fn keys(text: &str) -> Result<Keys, AccessError> {
        let path = std::env::temp_dir().join(format!("kvferry-keys-{}", uuid::Uuid::new_v4()));
        fs::write(&path, text).unwrap();
        let keys = Keys::load(&path);
        fs::remove_file(path).unwrap();
        keys
    }

    #[test]
    fn one_of_the_keys_opens() {
        let keys = keys("# team a\nalpha\n\n  beta  \n").unwrap();
        for good in ["Bearer alpha", "bearer beta", "BEARER  alpha "] {
            assert!(keys.admit(&request(good)), "{good}");
        }
        for bad in ["Bearer gamma", "alpha", "Basic alpha", "Bearer ", "Bearer # team a", ""] {
            assert!(!keys.admit(&request(bad)), "{bad}");
        }
        assert!(!keys.admit(&Request::new(Body::empty())));
    }

    #[test]
    fn a_file_without_keys_locks_nobody_out() {
        assert!(matches!(keys("\n# nothing yet\n"), Err(AccessError::Empty { .. })));
        assert!(matches!(Keys::load(Path::new("no-such-file")), Err(AccessError::Read { .. })));
    }

    #[test]
    fn origins_are_told_from_other_words() {
        for good in [vec!["*"], vec![""], vec!["https://a.example", "http://localhost:3000"]] {
            let good: Vec<String> = good.into_iter().map(str::to_owned).collect();
            assert!(cors(&good).is_ok(), "{good:?}");
        }
        for bad in ["example.org", "https://a.example/", "ftp://a.example"] {
            assert!(cors(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
