//! `kv_transfer_params` at the router: ignored unless it is told to take them, and what it asks of nodes then.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use kit::{Bench, Script, Seen, Then, body};
use serde_json::json;
use transport::message::{FailureKind, FinishReason, Role};

fn story() -> Script {
    Script::says(" there was a dog", Then::Finish(FinishReason::Length))
}

#[tokio::test]
async fn a_router_that_was_not_told_to_ignores_the_field() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    for params in [json!({"do_remote_decode": true}), json!({"do_remote_prefill": true}), json!([1])] {
        let answer = bench.json("/v1/completions", &body(json!({"kv_transfer_params": params}))).await;
        assert_eq!(answer["choices"][0]["text"], " there was a dog");
        assert!(answer.get("kv_transfer_params").is_none(), "{answer}");
    }
    bench.shut_down().await;
}

#[tokio::test]
async fn a_router_without_decode_nodes_is_ready_where_it_may_have_caches_kept() {
    for (is_told, status) in [(false, 503), (true, 200)] {
        let bench = Bench::with(|config| config.kv_transfer_params = is_told).await;
        assert_eq!(bench.health().await.0, 503, "there is no node");
        let _prefill = bench.node("p1", Role::Prefill, Script::default()).await;
        bench.sees("kvferry_router_nodes{role=\"prefill\"} 1").await;
        assert_eq!(bench.health().await.0, status);
        bench.shut_down().await;
    }
}

#[tokio::test]
async fn a_prompt_to_be_kept_is_tried_on_another_node_and_its_failure_is_told() {
    let bench = Bench::with(|config| config.kv_transfer_params = true).await;
    let mut busy = [
        bench.node("p1", Role::Prefill, Script::refuses(FailureKind::Busy)).await,
        bench.node("p2", Role::Prefill, Script::refuses(FailureKind::Busy)).await,
    ];
    bench.sees("kvferry_router_nodes{role=\"prefill\"} 2").await;
    let keep = body(json!({"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}}));
    let (status, error) = bench.refused(&keep).await;
    assert_eq!((status, error.code.as_deref()), (429, Some("node_busy")));
    for node in &mut busy {
        assert!(matches!(node.seen().await, Seen::Prefill(coding, _) if coding.codec == "lossless"));
    }
    bench.shut_down().await;
}

#[tokio::test]
async fn a_node_that_delivers_what_it_should_keep_has_broken_the_protocol() {
    let bench = Bench::with(|config| config.kv_transfer_params = true).await;
    let _prefill = bench.node("p1", Role::Prefill, Script::default()).await;
    bench.sees("kvferry_router_nodes{role=\"prefill\"} 1").await;
    let keep = body(json!({"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}}));
    let (status, error) = bench.refused(&keep).await;
    assert_eq!((status, error.code.as_deref()), (502, Some("node_protocol")));
    assert!(error.message.contains("Prefilled came out of turn"), "{}", error.message);
    bench.shut_down().await;
}
