//! What probes and scrapers get.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use service::{Readiness, Registry, Shutdown, admin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

async fn get(routes: &Router, path: &str) -> (StatusCode, String, String) {
    get_as(routes, path, "*/*").await
}

async fn get_as(routes: &Router, path: &str, accept: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty()).unwrap();
    let response = routes.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, content_type, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_starting_process_is_alive_but_not_ready() {
    let routes = admin::routes(Readiness::starting(), Registry::new());
    let (status, _, body) = get(&routes, "/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({"status": "unavailable", "reason": "starting"})
    );
    let (status, _, body) = get(&routes, "/live").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, r#"{"status":"ok"}"#));
}

#[tokio::test]
async fn health_follows_the_readiness_and_names_the_build() {
    let readiness = Readiness::starting();
    let routes = admin::routes(readiness.clone(), Registry::new());
    readiness.set_ready();
    let (status, _, body) = get(&routes, "/health").await;
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &health["status"]), (StatusCode::OK, &json!("ok")));
    assert_eq!(health["build"]["version"], env!("CARGO_PKG_VERSION"));
    readiness.set_unready("router lost");
    let (status, _, body) = get(&routes, "/health").await;
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &health["reason"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("router lost")));
}

#[tokio::test]
async fn metrics_are_open_metrics_for_who_asks_and_prometheus_text_for_others() {
    let registry = Registry::new();
    registry.counter("requests", "Requests taken").inc_by(2);
    let routes = admin::routes(Readiness::starting(), registry);
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let (status, content_type, body) = get_as(&routes, "/metrics", accept).await;
    assert_eq!(status, StatusCode::OK);
    assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"), "{content_type}");
    assert!(body.contains("kvferry_requests_total 2\n") && body.ends_with("# EOF\n"), "{body}");
    let (_, content_type, body) = get(&routes, "/metrics").await;
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    assert!(body.contains("# TYPE kvferry_requests_total counter\nkvferry_requests_total 2\n"), "{body}");
}

#[tokio::test]
async fn probes_are_answered_over_tcp_until_the_shutdown_has_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(60));
    let serving = tokio::spawn({
        let shutdown = shutdown.clone();
        let routes = admin::routes(Readiness::starting(), Registry::new());
        async move { admin::serve(listener, routes, &shutdown).await }
    });
    shutdown.drain();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // A connection that stays open does not hold the process.
    shutdown.end();
    tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap().unwrap();
}
