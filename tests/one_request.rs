//! Text in, text out, over real QUIC and HTTP, with what each answer says of its transfer.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::Kit;
use node::DeviceChoice;
use serde_json::{Value, json};

const BYTES_PER_TOKEN: u64 = 6144;

#[tokio::test(flavor = "multi_thread")]
async fn a_coded_cache_crosses_in_a_fraction_of_its_bytes() {
    let kit = Kit::start().await;
    let prompt = kit.prompt(1_500);
    let raw = kit.complete(&prompt, 8, json!({"kv_codec": "raw"})).await.kv_transfer.unwrap();
    assert_eq!(raw.raw_bytes, 1_500 * BYTES_PER_TOKEN);
    let overhead = raw.wire_bytes as f64 / raw.raw_bytes as f64;
    assert!((1.0..1.01).contains(&overhead), "raw costs {overhead} of its bytes");
    let mut last = 1.0;
    for tier in [8, 32, 64] {
        let coded = kit.complete(&prompt, 8, json!({"kv_codec": "kvtc", "kv_tier": tier})).await;
        let coded = coded.kv_transfer.unwrap();
        assert_eq!((coded.codec.as_deref(), coded.tier), (Some("kvtc"), Some(tier)));
        assert_eq!(coded.saved_bytes, coded.raw_bytes as i64 - coded.wire_bytes as i64);
        let ratio = coded.raw_bytes as f64 / coded.wire_bytes as f64;
        assert!((coded.ratio.unwrap() - ratio).abs() < 0.01);
        assert!(ratio > last * 1.2, "tier {tier}: {ratio}");
        assert!(coded.prefill_ms > 0.0 && coded.encode_ms > 0.0 && coded.decode_ms > 0.0);
        assert!(coded.ttft_ms >= coded.prefill_ms && coded.second_token_ms.unwrap() > coded.ttft_ms);
        last = ratio;
    }
    assert!(last > 20.0, "tier 64 reaches {last}");
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lossless_gives_the_tokens_of_raw_and_fp8_half_its_bytes() {
    let kit = Kit::start().await;
    for tokens in [3, 300, 1_000] {
        let prompt = kit.prompt(tokens);
        let complete =
            async |codec| kit.complete(&prompt, 48, json!({"kv_codec": codec, "ignore_eos": true})).await;
        let (raw, lossless, fp8) = (complete("raw").await, complete("lossless").await, complete("fp8").await);
        assert_eq!(lossless.choices[0].text, raw.choices[0].text, "{tokens} tokens");
        for (codec, answer, least) in [("lossless", lossless, 1.4), ("fp8", fp8, 1.9)] {
            let transfer = answer.kv_transfer.unwrap();
            assert_eq!((transfer.codec.as_deref(), transfer.tier), (Some(codec), None));
            let ratio = transfer.ratio.unwrap();
            assert!(tokens < 100 || ratio > least, "{codec} reaches {ratio} at {tokens} tokens");
        }
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coded_answers_still_find_the_hidden_fact() {
    let kit = Kit::start().await;
    let tasks = cluster_tests::kit::tasks(&kit.tokenizer, 8, 1_000);
    let mut right = [0, 0];
    for task in &tasks {
        for (codec, right) in ["raw", "kvtc"].into_iter().zip(&mut right) {
            let extra = json!({"kv_codec": codec, "kv_tier": 32, "stop": "\n"});
            let answer = kit.complete(&task.prompt, 24, extra).await;
            *right += usize::from(answer.choices[0].text.trim() == task.answer);
        }
    }
    let [raw, coded] = right;
    assert!(raw >= 6, "the model itself finds {raw} of 8");
    assert!(coded + 1 >= raw, "raw finds {raw} of 8, tier 32 {coded}");
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gives_the_same_text_as_a_whole_answer() {
    let kit = Kit::start().await;
    let prompt = kit.prompt(200);
    let whole = kit.complete(&prompt, 16, json!({"kv_codec": "raw"})).await;
    let body = json!({
        "model": "tiny-llama", "prompt": prompt, "max_tokens": 16, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "kv_codec": "raw", "kv_transfer": true,
    });
    let response = kit.send(&body).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let text = response.text().await.unwrap();
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, tokens) = chunks.split_last().unwrap();
    let streamed: String = tokens.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, whole.choices[0].text);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole.usage.unwrap().completion_tokens);
    assert_eq!(usage["kv_transfer"]["source"], "remote");
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_nothing_is_said_of_the_transfer() {
    let kit = Kit::start().await;
    let body = json!({"model": "tiny-llama", "prompt": "The linker", "max_tokens": 3});
    let answer: Value = kit.send(&body).await.json().await.unwrap();
    assert!(answer.get("kv_transfer").is_none_or(Value::is_null));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_coded_after_the_prompt_is_whole_and_one_coded_meanwhile_overlaps_with_it() {
    // A link that is slow for what computes the prompt: a GPU takes milliseconds.
    let gbps = if cluster_tests::kit::device() == DeviceChoice::Cpu { 0.02 } else { 2.0 };
    let mut kit = Kit::start_with(|options| options.prefill_nodes = 0).await;
    let adjust = |config: &mut prefill_node::Config| {
        config.node.link_gbps = gbps;
    };
    kit.cluster.add_prefill(adjust).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    let prompt = kit.prompt(1_200);
    let send = async |codec: &str, mode: &str| {
        let answer = kit.complete(&prompt, 8, json!({"kv_codec": codec, "kv_mode": mode})).await;
        answer.kv_transfer.unwrap()
    };
    let (after, stream, fp8) =
        (send("kvtc", "auto").await, send("kvtc", "stream").await, send("fp8", "auto").await);
    let modes = [&after, &stream, &fp8].map(|transfer| transfer.mode.as_deref().unwrap().to_owned());
    assert_eq!(modes, ["after", "stream", "stream"]);
    assert_eq!(after.overlap, Some(0.0), "nothing is coded before the prompt is done");
    // Four of five chunks go early; a GPU is done with the last before much of them was sent.
    assert!((0.1..1.0).contains(&stream.overlap.unwrap()), "{stream:?}");
    // 1.2 MB as fp8 take 1.2 s on this link, the prompt far less.
    assert!((0.01..0.9).contains(&fp8.overlap.unwrap()), "the wire is the bottleneck: {fp8:?}");
    assert!(after.ratio.unwrap() > 10.0 && stream.ratio.unwrap() > 10.0, "{after:?} {stream:?}");
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_cache_coded_after_the_prompt_are_as_large_as_the_node_is_told() {
    let mut kit = Kit::start_with(|options| options.prefill_nodes = 0).await;
    kit.cluster.add_prefill(|config| config.after_chunk_tokens = 100).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    let prompt = kit.prompt(700);
    let small = kit.complete(&prompt, 8, json!({"kv_codec": "kvtc"})).await.kv_transfer.unwrap();
    kit.stop().await;
    let kit = Kit::start().await;
    let whole = kit.complete(&prompt, 8, json!({"kv_codec": "kvtc"})).await.kv_transfer.unwrap();
    assert!(small.wire_bytes > whole.wire_bytes + 6 * 100, "{} and {}", small.wire_bytes, whole.wire_bytes);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_codec_that_only_streams_is_not_coded_after_the_prompt() {
    let kit = Kit::start().await;
    let body = json!({"model": "tiny-llama", "prompt": "The linker", "kv_codec": "fp8", "kv_mode": "after"});
    let response = kit.send(&body).await;
    assert_eq!(response.status().as_u16(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["param"], "kv_mode");
    kit.stop().await;
}
