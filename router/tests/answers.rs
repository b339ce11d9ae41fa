//! Requests that go well: text in, text out, over real HTTP and QUIC, with scripted nodes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use kit::{Bench, Script, Seen, Then, body, chunks, ids};
use openai::{FinishReason, KvSource};
use serde_json::{Value, json};
use transport::message::{FinishReason as NodeReason, KvMode, Role};

const TEXT: &str = " there was a little dog";

fn story() -> Script {
    Script::says(TEXT, Then::Finish(NodeReason::Length))
}

#[tokio::test]
async fn a_whole_answer_carries_the_text_and_the_usage() {
    let bench = Bench::new().await;
    let (mut prefill, mut decode) = bench.pair(story()).await;
    let tokens = ids(TEXT).len() as u32;
    let answer = bench.answered(&body(json!({"max_tokens": tokens, "seed": 5, "temperature": 0.5}))).await;
    assert_eq!(answer.choices[0].text, TEXT);
    assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::Length));
    let prompt = ids("Once upon a time").len() as u32 + 1;
    let usage = answer.usage.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        (prompt, tokens, prompt + tokens)
    );
    assert_eq!(answer.kv_transfer, None, "nobody asked for it");
    let Seen::Reserve(reserve) = decode.seen().await else { panic!("not a reservation") };
    assert_eq!((reserve.prompt_tokens, reserve.max_tokens, reserve.sampling.seed), (prompt, tokens, 5));
    let Seen::Prefill(coding, token_ids) = prefill.seen().await else { panic!("not a prefill") };
    assert_eq!((coding.codec.as_str(), token_ids.len()), ("raw", prompt as usize));
    bench.sees("kvferry_router_requests_total{outcome=\"ok\",status=\"200\"} 1").await;
    bench.sees("kvferry_router_kv_wire_bytes_total{codec=\"kvtc\"} 16000").await;
    bench.sees("kvferry_router_requests_in_flight 0").await;
}

#[tokio::test]
async fn a_stream_has_one_chunk_per_token_then_usage_then_done() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let tokens = ids(TEXT).len();
    let events = bench
        .streamed(&body(
            json!({"max_tokens": tokens, "stream": true, "stream_options": {"include_usage": true}}),
        ))
        .await;
    let chunks = chunks(&events);
    let (usage, texts) = chunks.split_last().unwrap();
    assert_eq!(texts.len(), tokens, "one chunk per token");
    assert_eq!(texts.iter().map(|chunk| chunk.choices[0].text.as_str()).collect::<String>(), TEXT);
    assert!(texts.iter().all(|chunk| chunk.usage.is_none() && chunk.id == usage.id));
    let (last, before) = texts.split_last().unwrap();
    assert_eq!(last.choices[0].finish_reason, Some(FinishReason::Length));
    assert!(before.iter().all(|chunk| chunk.choices[0].finish_reason.is_none()));
    assert!(usage.choices.is_empty() && usage.kv_transfer.is_none());
    assert_eq!(usage.usage.unwrap().completion_tokens as usize, tokens);
}

#[tokio::test]
async fn a_stream_without_wishes_ends_with_its_last_token() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let chunks = chunks(&bench.streamed(&body(json!({"max_tokens": 1000, "stream": true}))).await);
    assert!(chunks.iter().all(|chunk| chunk.choices.len() == 1 && chunk.usage.is_none()));
}

#[tokio::test]
async fn one_token_is_enough() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(Script { tokens: ids("a"), ..Script::default() }).await;
    let chunks = chunks(&bench.streamed(&body(json!({"max_tokens": 1, "stream": true}))).await);
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].choices[0].text, "a");
}

#[tokio::test]
async fn the_transfer_is_reported_when_field_or_header_ask() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let transfer =
        bench.answered(&body(json!({"kv_transfer": true, "max_tokens": 64}))).await.kv_transfer.unwrap();
    assert_eq!(
        (transfer.source, transfer.codec.as_deref(), transfer.tier),
        (KvSource::Remote, Some("kvtc"), Some(32))
    );
    assert_eq!((transfer.raw_bytes, transfer.wire_bytes, transfer.saved_bytes), (320_000, 16_000, 304_000));
    assert_eq!((transfer.mode.as_deref(), transfer.overlap), (Some("after"), Some(0.25)));
    assert_eq!((transfer.ratio, transfer.wire_ms, transfer.encode_ms), (Some(20.0), 4.0, 3.0));
    assert_eq!((transfer.prefill_node.as_str(), transfer.decode_node.as_str()), ("p1", "d1"));
    assert!(transfer.ttft_ms > 0.0 && transfer.second_token_ms.unwrap() >= transfer.ttft_ms);

    let request = bench.client.post(bench.url("/v1/completions")).header("x-kv-transfer", "1");
    let streamed = body(json!({"stream": true, "max_tokens": 64})).to_string();
    let bytes = request.body(streamed).send().await.unwrap().bytes().await.unwrap();
    let chunks = chunks(&openai::sse::Decoder::default().push(&bytes).unwrap());
    let last = chunks.last().unwrap();
    assert!(last.choices.is_empty() && last.usage.is_some());
    assert_eq!(last.kv_transfer.as_ref().unwrap().wire_bytes, 16_000);
}

#[tokio::test]
async fn stop_strings_end_the_text_and_cancel_the_rest() {
    let bench = Bench::new().await;
    let (_prefill, mut decode) = bench.pair(Script::says(TEXT, Then::Stall)).await;
    let answer = bench.answered(&body(json!({"stop": ["a lit", "nothing"], "max_tokens": 100}))).await;
    assert_eq!(answer.choices[0].text, " there was ");
    assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::Stop));
    assert!(matches!(decode.seen().await, Seen::Reserve(_)));
    assert!(matches!(decode.seen().await, Seen::Cancelled));
}

#[tokio::test]
async fn text_held_back_for_a_stop_string_comes_when_the_end_comes_first() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(Script::says(TEXT, Then::Finish(NodeReason::Stop))).await;
    let chunks =
        chunks(&bench.streamed(&body(json!({"stop": "dogs", "stream": true, "max_tokens": 100}))).await);
    assert_eq!(chunks.iter().map(|chunk| chunk.choices[0].text.as_str()).collect::<String>(), TEXT);
    assert_eq!(chunks.last().unwrap().choices[0].finish_reason, Some(FinishReason::Stop));
}

#[tokio::test]
async fn without_a_prefill_node_decode_runs_the_prompt() {
    let bench = Bench::new().await;
    let _decode = bench.node("d1", Role::Decode, story()).await;
    bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
    let answer = bench.answered(&body(json!({"kv_transfer": true, "max_tokens": 64}))).await;
    assert_eq!(answer.choices[0].text, TEXT);
    let transfer = answer.kv_transfer.unwrap();
    assert_eq!(
        (transfer.source, transfer.codec, transfer.ratio, transfer.mode),
        (KvSource::Local, None, None, None)
    );
    assert_eq!((transfer.raw_bytes, transfer.wire_bytes, transfer.saved_bytes), (0, 0, 0));
}

#[tokio::test]
async fn long_prompts_are_coded_and_codec_wishes_are_kept() {
    let bench = Bench::new().await;
    let (mut prefill, _decode) = bench.pair(story()).await;
    let long = "a dog and a cat ".repeat(40);
    for (fields, expected) in [
        (json!({"prompt": long}), ("kvtc", 32, KvMode::After)),
        (json!({"prompt": long, "kv_codec": "raw"}), ("raw", 32, KvMode::Stream)),
        (json!({"prompt": long, "kv_codec": "kvtc", "kv_mode": "stream"}), ("kvtc", 32, KvMode::Stream)),
        (json!({"prompt": "short", "kv_codec": "kvtc", "kv_tier": 8}), ("kvtc", 8, KvMode::After)),
    ] {
        let mut fields = fields;
        fields["max_tokens"] = json!(64);
        bench.answered(&body(fields)).await;
        let Seen::Prefill(coding, _) = prefill.seen().await else { panic!("not a prefill") };
        assert_eq!((coding.codec.as_str(), coding.tier, coding.mode), expected);
    }
}

#[tokio::test]
async fn what_a_request_shows_is_an_input_of_the_next_ones_forecast() {
    let bench = Bench::with(|config| config.local_prefill = router::LocalPrefill::Never).await;
    let (mut prefill, _decode) = bench.pair(story()).await;
    let long = body(json!({"prompt": "a dog and a cat ".repeat(100), "max_tokens": 64, "kv_transfer": true}));
    let first = bench.answered(&long).await.kv_transfer.unwrap();
    assert_eq!((first.predicted_ms, first.bypass_reason, first.link_gbps), (None, None, Some(40.0)));
    for line in [
        "kvferry_router_link_bytes_per_second{prefill=\"p1\",decode=\"d1\"} 5000000000.0",
        "kvferry_router_codec_ratio{codec=\"kvtc\",mode=\"after\",tier=\"32\"} 20.0",
        "kvferry_router_choices_total{way=\"kvtc/after\",reason=\"unmeasured\"} 1",
    ] {
        bench.sees(line).await;
    }
    let second = bench.answered(&long).await.kv_transfer.unwrap();
    assert!(second.predicted_ms.unwrap() > 1.0);
    // The stub's codec is slow, its link is not.
    bench.sees("kvferry_router_choices_total{way=\"raw\",reason=\"predicted\"} 1").await;
    assert!(second.bypass_reason.unwrap().starts_with("link is fast: raw predicted"));
    assert!(matches!(prefill.seen().await, Seen::Prefill(coding, _) if coding.codec == "kvtc"));
    assert!(matches!(prefill.seen().await, Seen::Prefill(coding, _) if coding.codec == "raw"));
    let metrics = bench.metrics().await;
    for name in
        ["prompt_fixed_seconds", "prompt_token_seconds", "prefill_wait_seconds", "codec_bytes_per_second"]
    {
        assert!(metrics.contains(&format!("kvferry_router_{name}{{")), "{name} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn models_health_and_request_ids_have_the_known_shapes() {
    let bench = Bench::new().await;
    assert_eq!(bench.health().await.0, 503);
    let _nodes = bench.pair(story()).await;
    assert_eq!(bench.health().await.0, 200);
    let models: Value = serde_json::from_str(
        &bench.client.get(bench.url("/v1/models")).send().await.unwrap().text().await.unwrap(),
    )
    .unwrap();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 8192);
    let named =
        bench.client.get(bench.url("/v1/models")).header("x-request-id", "my-own").send().await.unwrap();
    assert_eq!(named.headers()["x-request-id"], "my-own");
    let unnamed = bench.client.get(bench.url("/live")).send().await.unwrap();
    assert_eq!(unnamed.headers()["x-request-id"].len(), 36);
}
