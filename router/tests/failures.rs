//! Requests that go wrong, and nodes that come and go.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use std::time::Duration;

use kit::{Bench, SOON, Script, Seen, Then, body, ids};
use openai::ErrorBody;
use openai::sse::Event;
use serde_json::json;
use transport::ConnectionLost;
use transport::message::{FailureKind, FinishReason, ModelIdentity, Role};

fn story() -> Script {
    Script::says(" there was a dog", Then::Finish(FinishReason::Length))
}

#[tokio::test]
async fn every_bad_request_is_refused_with_its_status_and_field() {
    let bench = Bench::with(|config| config.max_body_bytes = 64 << 10).await;
    let _nodes = bench.pair(story()).await;
    let long = "dog ".repeat(5000);
    let cases = [
        (json!({"max_tokens": -1}), 400, "invalid_value", Some("max_tokens")),
        (json!({"prompt": [1, "a"]}), 400, "invalid_type", Some("prompt[1]")),
        (json!({"suffix": "s"}), 400, "unsupported_value", Some("suffix")),
        (json!({"stop": [1]}), 400, "invalid_type", Some("stop[0]")),
        (json!({"stream_options": {}}), 400, "invalid_combination", Some("stream_options")),
        (json!({"model": "gpt-4"}), 404, "model_not_found", Some("model")),
        (json!({"max_tokens": 8192}), 400, "context_length_exceeded", Some("max_tokens")),
        (json!({"max_tokens": 5000}), 400, "context_length_exceeded", Some("max_tokens")),
        (json!({"prompt": long.repeat(2)}), 400, "context_length_exceeded", Some("prompt")),
        (json!({"prompt": "x".repeat(64 << 10)}), 413, "body_too_large", None),
    ];
    for (fields, status, code, param) in cases {
        let (got, error) = bench.refused(&body(fields)).await;
        assert_eq!(
            (got, error.code.as_deref(), error.param.as_deref()),
            (status, Some(code), param),
            "{error:?}"
        );
        assert_eq!(error.kind, "invalid_request_error");
    }
    let (_, error) = bench.refused(&body(json!({"model": "gpt-4"}))).await;
    assert!(error.message.contains("gpt-4") && error.message.contains("tiny"), "{}", error.message);
    let (_, error) = bench.refused(&body(json!({"max_tokens": 8192}))).await;
    assert!(
        error.message.contains("8192 tokens") && error.message.contains("in the prompt"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn bodies_and_routes_that_do_not_exist_are_errors_of_the_api_too() {
    let bench = Bench::new().await;
    let url = |path: &str| bench.url(path);
    for (request, status, code) in [
        (bench.client.post(url("/v1/completions")).body("{\"model\": nan}"), 400, "invalid_json"),
        (bench.client.post(url("/v1/completions")).body("[]"), 400, "invalid_type"),
        (bench.client.post(url("/v1/chat")), 404, "not_found"),
        (bench.client.get(url("/v1/completions")), 405, "method_not_allowed"),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let body: ErrorBody = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body.error.code.as_deref(), Some(code), "{body:?}");
    }
}

#[tokio::test]
async fn what_is_missing_in_the_cluster_is_named() {
    let bench = Bench::with(|config| config.local_prefill = router::LocalPrefill::Never).await;
    let (status, error) = bench.refused(&body(json!({}))).await;
    assert_eq!((status, error.kind.as_str()), (503, "service_unavailable"));
    assert!(error.message.contains("no decode node"), "{}", error.message);
    let _decode = bench.node("d1", Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    let response = bench.post(&body(json!({}))).await;
    assert!(response.headers().contains_key("retry-after"));
    assert!(response.text().await.unwrap().contains("no prefill node"));
    assert!(bench.health().await.1.contains("no prefill node is registered"));
}

#[tokio::test]
async fn a_busy_node_is_passed_over_for_another() {
    let bench = Bench::new().await;
    let (_prefill, mut busy) = bench.pair(Script::refuses(FailureKind::Busy)).await;
    let _free = bench.node("d2", Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 2").await;
    for _ in 0..4 {
        let answer = bench.answered(&body(json!({"max_tokens": 64}))).await;
        assert_eq!(answer.choices[0].text, " there was a dog");
    }
    assert!(matches!(busy.seen().await, Seen::Reserve(_)), "the busy node was never asked");
    assert!(bench.metrics().await.contains("node_failures_total{role=\"decode\",kind=\"node_busy\"}"));
}

#[tokio::test]
async fn a_prefill_node_that_cannot_is_reported_and_the_reservation_is_cancelled() {
    let bench = Bench::with(|config| config.local_prefill = router::LocalPrefill::Never).await;
    let _bad = bench.node("p0", Role::Prefill, Script::refuses(FailureKind::Draining)).await;
    bench.sees("kvferry_router_nodes{role=\"prefill\"} 1").await;
    // Without tokens the decode node waits for a cache, as it would.
    let mut decode = bench.node("d1", Role::Decode, Script::default()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    let (status, error) = bench.refused(&body(json!({}))).await;
    assert_eq!((status, error.code.as_deref()), (503, Some("node_draining")));
    assert!(error.message.contains("prefill node p0"), "{}", error.message);
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn an_invalid_request_is_not_tried_elsewhere() {
    let bench = Bench::new().await;
    let (_prefill, mut first) = bench.pair(Script::refuses(FailureKind::Invalid)).await;
    let mut second = bench.node("d2", Role::Decode, Script::refuses(FailureKind::Invalid)).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 2").await;
    let (status, error) = bench.refused(&body(json!({}))).await;
    assert_eq!((status, error.code.as_deref()), (400, Some("node_refused")));
    tokio::select! {
        _ = first.seen() => {}
        _ = second.seen() => {}
    }
    bench.sees("kvferry_router_retries_total 0").await;
}

#[tokio::test]
async fn a_decode_node_that_dies_mid_stream_gives_an_error_event_and_no_done() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(Script::says(" there was", Then::Die)).await;
    let events = bench.streamed(&body(json!({"max_tokens": 64, "stream": true}))).await;
    let Some(Event::Data(last)) = events.last() else { panic!("ended with {:?}", events.last()) };
    let error: ErrorBody = serde_json::from_str(last).unwrap();
    assert_eq!(error.error.code.as_deref(), Some("node_lost"));
    assert_eq!(events.len(), ids(" there was").len() + 1);
    assert!(!events.contains(&Event::Done));
    bench.sees("kvferry_router_requests_total{outcome=\"node_lost\",status=\"200\"} 1").await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 0").await;
}

#[tokio::test]
async fn a_failure_after_the_first_token_is_an_error_for_a_whole_answer() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(Script::says(" there was", Then::Fail(FailureKind::Internal))).await;
    let (status, error) = bench.refused(&body(json!({"max_tokens": 64}))).await;
    assert_eq!((status, error.code.as_deref()), (500, Some("node_internal")));
    assert!(error.message.contains("decode node d1"), "{}", error.message);
}

#[tokio::test]
async fn a_stalled_decode_node_is_given_up_after_the_deadline() {
    let bench = Bench::with(|config| config.next_token_seconds = Duration::from_millis(50)).await;
    let (_prefill, mut decode) = bench.pair(Script::says(" there was", Then::Stall)).await;
    let (status, error) = bench.refused(&body(json!({"max_tokens": 64}))).await;
    assert_eq!((status, error.code.as_deref()), (504, Some("deadline")));
    assert!(error.message.contains("next token within 50ms"), "{}", error.message);
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn a_cache_that_never_comes_is_given_up_after_the_deadline() {
    let bench = Bench::with(|config| config.first_token_seconds = Duration::from_millis(50)).await;
    let (_prefill, mut decode) = bench.pair(Script::default()).await;
    let (status, error) = bench.refused(&body(json!({}))).await;
    assert_eq!((status, error.code.as_deref()), (504, Some("deadline")));
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_decode() {
    let bench = Bench::new().await;
    let (_prefill, mut decode) = bench.pair(Script::says(" there was", Then::Stall)).await;
    let mut response = bench.post(&body(json!({"max_tokens": 64, "stream": true}))).await;
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    assert!(matches!(decode.seen().await, Seen::Cancelled));
    bench.sees("kvferry_router_requests_total{outcome=\"cancelled\",status=\"499\"} 1").await;
    bench.sees("kvferry_router_requests_in_flight 0").await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_decode() {
    let bench = Bench::new().await;
    let (_prefill, mut decode) = bench.pair(Script::default()).await;
    let request = bench.client.post(bench.url("/v1/completions")).body(body(json!({})).to_string());
    let waiting = tokio::spawn(request.send());
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    waiting.abort();
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn more_requests_than_places_are_turned_away() {
    let bench = Bench::with(|config| config.max_requests = 1).await;
    let (_prefill, mut decode) = bench.pair(Script::says(" there was", Then::Stall)).await;
    let first = bench.post(&body(json!({"max_tokens": 64, "stream": true}))).await;
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    let response = bench.post(&body(json!({}))).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    drop(first);
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn nodes_come_back_under_their_name_and_silent_ones_are_dropped() {
    let bench = Bench::with(|config| config.silence_seconds = Duration::from_millis(500)).await;
    let mut first = bench.node("d1", Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    let second = bench.node("d1", Role::Decode, story()).await;
    tokio::time::timeout(SOON, first.peer.closed()).await.expect("the earlier connection lives on");
    first.fall_silent();
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    second.die();
    bench.sees("kvferry_router_nodes{role=\"decode\"} 0").await;
    assert_eq!(bench.health().await.0, 503);
    let mut third = bench.node("d1", Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    assert!(bench.answered(&body(json!({"max_tokens": 64}))).await.usage.is_some());
    third.fall_silent();
    let lost = tokio::time::timeout(SOON, third.peer.closed()).await.unwrap();
    assert!(lost.to_string().contains("no heartbeat in time"), "{lost}");
}

#[tokio::test]
async fn a_node_with_other_weights_or_another_plan_is_refused_in_words() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let good = ModelIdentity { fingerprint: [7; 16], plan_id: Some([9; 16]), ..bench.model.identity.clone() };
    for (identity, words) in [
        (ModelIdentity { fingerprint: [8; 16], ..good.clone() }, "weights differ"),
        (ModelIdentity { plan_id: Some([1; 16]), ..good.clone() }, "plan differs"),
    ] {
        let node = bench.node_of("d2", Role::Decode, story(), identity).await;
        let lost = tokio::time::timeout(SOON, node.peer.closed()).await.unwrap();
        let ConnectionLost::ClosedByPeer { reason, .. } = lost else { panic!("not refused: {lost}") };
        assert!(reason.contains(words), "{reason}");
    }
    let _without_plan =
        bench.node_of("d3", Role::Decode, story(), ModelIdentity { plan_id: None, ..good }).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 2").await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_then_stops() {
    let bench = Bench::with(|config| config.next_token_seconds = Duration::from_millis(300)).await;
    let _nodes = bench.pair(Script::says(" there was", Then::Stall)).await;
    let mut response = bench.post(&body(json!({"max_tokens": 64, "stream": true}))).await;
    assert!(response.chunk().await.unwrap().is_some());
    bench.drain();
    let mut rest = Vec::new();
    while let Some(bytes) = response.chunk().await.unwrap() {
        rest.extend_from_slice(&bytes);
    }
    assert!(String::from_utf8(rest).unwrap().contains("deadline"), "the stream was cut instead of finished");
    bench.shut_down().await;
}
