//! Spans as an OpenTelemetry collector gets them: one trace over router, prefill and decode, and no harm where there is no
//! collector.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::{Duration, Instant};

use cluster_tests::collector::{Collector, Exported};
use cluster_tests::kit::{PATIENCE, client};
use cluster_tests::process::{Process, certificates};
use serde_json::{Value, json};
use tempfile::TempDir;

const TRACE: [u8; 16] =
    [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
const CLIENT_SPAN: [u8; 8] = [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Router, prefill and decode node as processes that export to an endpoint.
struct Cluster {
    processes: Vec<Process>,
    http: String,
    _certs: TempDir,
}

impl Cluster {
    fn start(endpoint: &str) -> Self {
        let certs = certificates();
        let router = Process::start(
            "router",
            &["--http", "127.0.0.1:0", "--quic", "127.0.0.1:0", "--otlp-endpoint", endpoint],
            certs.path(),
        );
        let up = router.logged("router is up");
        let (http, quic) = (up["http"].as_str().unwrap().to_owned(), up["quic"].as_str().unwrap().to_owned());
        let mut processes = vec![router];
        for name in ["decode-node", "prefill-node"] {
            let args = ["--router", &quic, "--listen", "127.0.0.1:0", "--otlp-endpoint", endpoint];
            let node = Process::start(name, &args, certs.path());
            node.logged("joined the cluster");
            processes.push(node);
        }
        Self { processes, http, _certs: certs }
    }

    async fn ask(&self, headers: &[(&str, &str)], extra: Value) -> (u16, Value) {
        let mut body = json!({
            "model": "tiny-llama", "prompt": "The linker reports", "max_tokens": 5, "ignore_eos": true,
            "kv_codec": "kvtc", "kv_transfer": true,
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let mut request = client().post(format!("http://{}/v1/completions", self.http)).json(&body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Waits until requests are split over both nodes.
    async fn until_split(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, answer) = self.ask(&[], json!({})).await;
            if status == 200 && answer["kv_transfer"]["source"] == "remote" {
                return;
            }
            assert!(Instant::now() < deadline, "{status}: {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends all processes, which send their last spans; the time that the slowest took.
    fn end(mut self) -> Duration {
        let mut slowest = Duration::ZERO;
        for process in self.processes.iter_mut().rev() {
            let started = Instant::now();
            assert!(process.terminate().success(), "a drained process ends well");
            slowest = slowest.max(started.elapsed());
        }
        slowest
    }
}

/// The only span of a service with a name.
fn only<'a>(spans: &'a [Exported], service: &str, name: &str) -> &'a Exported {
    let mut found = spans.iter().filter(|span| span.service == service && span.span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no span {name} of {service} in {spans:#?}"));
    assert!(found.next().is_none(), "{name} of {service} is there twice");
    span
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_client_router_prefill_and_decode() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(&collector.endpoint());
    cluster.until_split().await;
    let headers = [("traceparent", TRACEPARENT), ("tracestate", "vendor=x"), ("x-request-id", "mine")];
    let (status, answer) = cluster.ask(&headers, json!({})).await;
    assert_eq!((status, &answer["kv_transfer"]["source"]), (200, &json!("remote")), "{answer}");
    cluster.end();

    let spans = collector.trace(&TRACE);
    let parents = [
        ("router", "request", None),
        ("router", "reserve", Some(("router", "request"))),
        ("router", "prefill", Some(("router", "request"))),
        ("router", "first token", Some(("router", "request"))),
        ("router", "generation", Some(("router", "request"))),
        ("prefill-node", "prefill", Some(("router", "prefill"))),
        ("prefill-node", "forward", Some(("prefill-node", "prefill"))),
        ("prefill-node", "encode", Some(("prefill-node", "prefill"))),
        ("prefill-node", "ship", Some(("prefill-node", "prefill"))),
        ("decode-node", "session", Some(("router", "request"))),
        ("decode-node", "receive", Some(("decode-node", "session"))),
        ("decode-node", "decode cache", Some(("decode-node", "receive"))),
        ("decode-node", "generate", Some(("decode-node", "session"))),
    ];
    for (service, name, parent) in parents {
        let expected = match parent {
            None => CLIENT_SPAN.to_vec(),
            Some((service, name)) => only(&spans, service, name).span.span_id.clone(),
        };
        assert_eq!(only(&spans, service, name).span.parent_span_id, expected, "parent of {service}: {name}");
    }
    assert_eq!(spans.len(), parents.len(), "{spans:#?}");

    let request = only(&spans, "router", "request");
    let transfer = &answer["kv_transfer"];
    for (name, expected) in [
        ("http.route", "/v1/completions".to_owned()),
        ("http.response.status_code", "200".to_owned()),
        ("gen_ai.request.model", "tiny-llama".to_owned()),
        ("gen_ai.usage.input_tokens", answer["usage"]["prompt_tokens"].to_string()),
        ("kv.codec", "kvtc".to_owned()),
        ("kv.raw_bytes", transfer["raw_bytes"].to_string()),
        ("kv.wire_bytes", transfer["wire_bytes"].to_string()),
    ] {
        assert_eq!(request.attribute(name), expected, "{name}");
    }
    assert_eq!(request.span.trace_state, "vendor=x");
    let (generation, receive) =
        (only(&spans, "router", "generation"), only(&spans, "decode-node", "receive"));
    assert_eq!(
        (generation.attribute("completion_tokens"), generation.attribute("finish_reason")),
        ("5".into(), "length".into())
    );
    assert_eq!(receive.attribute("wire_bytes"), transfer["wire_bytes"].to_string());
    let shipped = &only(&spans, "prefill-node", "ship").span.span_id;
    assert_eq!(receive.span.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [shipped]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_contexts_are_ignored_and_unsampled_ones_kept_unrecorded() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(&collector.endpoint());
    cluster.until_split().await;
    let before = collector.spans().len();
    let (status, _) = cluster.ask(&[("traceparent", &TRACEPARENT.to_uppercase())], json!({})).await;
    assert_eq!(status, 200);
    let unsampled = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00";
    assert_eq!(cluster.ask(&[("traceparent", unsampled)], json!({})).await.0, 200);
    let failing = "00-cccccccccccccccccccccccccccccccc-dddddddddddddddd-01";
    assert_eq!(cluster.ask(&[("traceparent", failing)], json!({"temperature": -1})).await.0, 400);
    client().get(format!("http://{}/metrics", cluster.http)).send().await.unwrap();
    cluster.end();

    assert!(collector.trace(&TRACE).is_empty(), "a malformed traceparent is ignored");
    assert!(collector.trace(&[0xaa; 16]).is_empty(), "the client does not want it recorded");
    let failed = collector.trace(&[0xcc; 16]);
    let failed = only(&failed, "router", "request");
    let status = failed.span.status.clone().unwrap_or_default();
    assert_eq!(
        (status.code, failed.attribute("http.response.status_code")),
        (0, "400".into()),
        "the client's fault"
    );
    let spans = collector.spans();
    assert!(spans.len() > before);
    assert!(spans.iter().all(|span| span.attribute("http.route") != "/metrics"), "scrapes are no requests");
    let roots: Vec<_> = spans.iter().filter(|span| span.span.parent_span_id.is_empty()).collect();
    assert!(roots.iter().all(|root| root.span.name == "request" && root.service == "router"), "{roots:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_holds_neither_requests_nor_the_end() {
    // It takes connections into its backlog and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = Cluster::start(&format!("http://{}", silent.local_addr().unwrap()));
    cluster.until_split().await;
    let started = Instant::now();
    for _ in 0..5 {
        assert_eq!(cluster.ask(&[("traceparent", TRACEPARENT)], json!({})).await.0, 200);
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let slowest = cluster.end();
    assert!(slowest < Duration::from_secs(8), "the last spans were waited for: {slowest:?}");
}
