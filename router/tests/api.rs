//! What the API takes beyond a text in and a text out: chat, several choices, tokens, log-probabilities, keys.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod kit;

use kit::{Bench, Script, Seen, Stub, Then, body, ids};
use openai::Tokenizer;
use serde_json::{Value, json};
use transport::message::{FailureKind, FinishReason as NodeReason, Logprobs, Role, Sampling};

const TEXT: &str = " there was a little dog";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn story() -> Script {
    Script::says(TEXT, Then::Finish(NodeReason::Stop))
}

fn chat(fields: Value) -> Value {
    let mut body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")).unwrap()
}

async fn prompt_of(prefill: &mut Stub) -> Vec<u32> {
    let Seen::Prefill(_, token_ids) = prefill.seen().await else { panic!("not a prefill") };
    token_ids
}

async fn sampling_of(decode: &mut Stub) -> Sampling {
    let Seen::Reserve(reserve) = decode.seen().await else { panic!("not a reservation") };
    reserve.sampling
}

#[tokio::test]
async fn a_chat_goes_through_the_models_template() {
    let bench = Bench::new().await;
    let (mut prefill, _decode) = bench.pair(story()).await;
    let response = bench.post_to(CHAT, &chat(json!({}))).await;
    assert_eq!(response.headers()["x-kv-raw-bytes"], "320000");
    assert_eq!(response.headers()["x-kv-wire-bytes"], "16000");
    assert_eq!(response.headers()["x-kv-ratio"], "20.000");
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": TEXT, "refusal": null}));
    assert_eq!(
        (&choice["finish_reason"], &choice["index"], &choice["logprobs"]),
        (&json!("stop"), &json!(0), &Value::Null)
    );
    assert_eq!(answer["usage"]["completion_tokens"], ids(TEXT).len());
    let prompt = tokenizer().decode_all(&prompt_of(&mut prefill).await);
    assert!(
        prompt.starts_with("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"),
        "{prompt}"
    );
    assert!(prompt.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n"), "{prompt}");
}

#[tokio::test]
async fn a_chat_stream_begins_with_text_and_ends_with_usage() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let usage = json!({"include_usage": true, "continuous_usage_stats": true});
    let wishes = json!({"stream": true, "stream_options": usage, "kv_transfer": true});
    let chunks = bench.stream_of(CHAT, &chat(wishes)).await;
    let (last, texts) = chunks.split_last().unwrap();
    let content = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap().to_owned();
    assert_eq!(texts.iter().map(content).collect::<String>(), TEXT);
    assert!(!content(&texts[0]).is_empty(), "the first chunk is the first token");
    assert_eq!(texts[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(texts[1..].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
    assert!(texts.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    for (generated, chunk) in (1..).zip(&texts[..texts.len() - 1]) {
        assert_eq!(chunk["usage"]["completion_tokens"], generated);
    }
    assert_eq!(texts.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!((&last["choices"], &last["kv_transfer"]["wire_bytes"]), (&json!([]), &json!(16_000)));
    assert_eq!(last["usage"]["completion_tokens"], ids(TEXT).len());
}

#[tokio::test]
async fn choices_come_in_the_order_of_prompts_and_count_all_tokens() {
    let bench = Bench::new().await;
    let (mut prefill, mut decode) = bench.pair(story()).await;
    let wishes = json!({"prompt": ["one", [5, 6]], "n": 2, "seed": 7, "max_tokens": 64, "kv_transfer": true});
    let answer = bench.json(COMPLETIONS, &body(wishes)).await;
    let indices: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["text"] == TEXT));
    let prompt = tokenizer().encode("one").unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len() + 2, "a prompt counts once");
    assert_eq!(answer["usage"]["completion_tokens"], 4 * ids(TEXT).len());
    assert_eq!(answer["kv_transfer"]["wire_bytes"], 4 * 16_000);
    assert_eq!(answer["kv_transfer"]["ratio"], 20.0);
    let mut prompts = Vec::new();
    let mut seeds = Vec::new();
    for _ in 0..4 {
        prompts.push(prompt_of(&mut prefill).await);
        seeds.push(sampling_of(&mut decode).await.seed);
    }
    prompts.sort();
    seeds.sort_unstable();
    assert_eq!(prompts, [vec![5, 6], vec![5, 6], prompt.clone(), prompt]);
    assert_eq!(seeds, [7, 7, 8, 8]);
}

#[tokio::test]
async fn choices_of_a_stream_are_told_apart() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let wishes = json!({"n": 3, "stream": true, "max_tokens": 64, "stream_options": {"include_usage": true}});
    let chunks = bench.stream_of(COMPLETIONS, &body(wishes)).await;
    let (usage, chunks) = chunks.split_last().unwrap();
    for index in 0..3 {
        let own =
            || chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        assert_eq!(own().map(|choice| choice["text"].as_str().unwrap()).collect::<String>(), TEXT);
        assert_eq!(own().filter(|choice| choice["finish_reason"] == "stop").count(), 1);
    }
    assert_eq!(usage["usage"]["completion_tokens"], 3 * ids(TEXT).len());
}

#[tokio::test]
async fn more_sequences_than_run_at_once_take_turns() {
    let bench = Bench::with(|config| config.max_requests = 3).await;
    let _nodes = bench.pair(story()).await;
    let answer = bench.json(COMPLETIONS, &body(json!({"n": 20, "max_tokens": 64}))).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 20);
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["text"] == TEXT));
    bench.sees("kvferry_router_requests_in_flight 0").await;
}

#[tokio::test]
async fn one_failed_sequence_fails_the_request() {
    let bench = Bench::with(|config| config.retries = 0).await;
    let _nodes = bench.pair(Script::says(TEXT, Then::Fail(FailureKind::Internal))).await;
    let (status, error) = bench.refused(&body(json!({"n": 2, "max_tokens": 64}))).await;
    assert_eq!((status, error.code.as_deref()), (500, Some("node_internal")));
}

#[tokio::test]
async fn settings_reach_the_nodes_and_tokens_go_as_they_are() {
    let bench = Bench::new().await;
    let (mut prefill, mut decode) = bench.pair(story()).await;
    let wishes = json!({
        "prompt": [11, 12, 11], "max_tokens": 64, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 9,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"7": -100},
        "min_tokens": 2, "stop_token_ids": [4], "logprobs": 1, "ignore_eos": true,
    });
    bench.json(COMPLETIONS, &body(wishes)).await;
    let Seen::Reserve(reserve) = decode.seen().await else { panic!("not a reservation") };
    let expected = Sampling {
        temperature: 0.5,
        top_p: 0.25,
        top_k: 3,
        seed: 9,
        ignore_eos: true,
        min_p: 0.125,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(7, -100.0)],
        min_tokens: 2,
        stop_token_ids: vec![4],
        logprobs: Some(1),
    };
    assert_eq!((reserve.sampling, reserve.prompt_ids), (expected, vec![11, 12]));
    assert_eq!(prompt_of(&mut prefill).await, [11, 12, 11]);
    let (status, error) = bench.refused(&body(json!({"prompt": [1, 9999]}))).await;
    assert_eq!(
        (status, error.code.as_deref(), error.param.as_deref()),
        (400, Some("invalid_prompt"), Some("prompt"))
    );
}

#[tokio::test]
async fn logprobs_come_in_both_shapes() {
    let bench = Bench::new().await;
    let dog = *ids(" dog").last().unwrap();
    let name = tokenizer().decode_all(&[dog]);
    let logprobs = Some(Logprobs { drawn: -0.5, top: vec![(dog, -0.25)] });
    let _nodes = bench.pair(Script { logprobs, ..story() }).await;
    let answer = bench.json(COMPLETIONS, &body(json!({"logprobs": 1, "max_tokens": 64}))).await;
    let lists = &answer["choices"][0]["logprobs"];
    let tokens: Vec<_> =
        lists["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), TEXT);
    assert_eq!(
        (&lists["token_logprobs"][1], &lists["top_logprobs"][0][&name]),
        (&json!(-0.5), &json!(-0.25))
    );
    assert_eq!(lists["text_offset"][1], tokens[0].len());
    let wishes = json!({"logprobs": true, "top_logprobs": 1, "stream": true});
    let chunks = bench.stream_of(CHAT, &chat(wishes)).await;
    let first = &chunks[0]["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&first["token"], &first["logprob"]), (&json!(tokens[0]), &json!(-0.5)));
    assert_eq!(first["bytes"], json!(tokens[0].as_bytes()));
    assert_eq!(first["top_logprobs"], json!([{"token": name, "logprob": -0.25, "bytes": name.as_bytes()}]));
    let told: usize =
        chunks.iter().map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().unwrap().len()).sum();
    assert_eq!(told, tokens.len(), "every token once");
}

#[tokio::test]
async fn an_echo_is_the_prompt_before_the_text() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let answer = bench.json(COMPLETIONS, &body(json!({"echo": true, "max_tokens": 64}))).await;
    assert_eq!(answer["choices"][0]["text"], format!("Once upon a time{TEXT}"));
    let wishes = json!({"echo": true, "stream": true, "prompt": ids("Once"), "max_tokens": 64});
    let chunks = bench.stream_of(COMPLETIONS, &body(wishes)).await;
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, format!("Once{TEXT}"));
    assert_eq!(chunks.len(), ids(TEXT).len() + 1, "one chunk per token, and the end");
}

#[tokio::test]
async fn stop_strings_count_from_min_tokens_on() {
    let bench = Bench::new().await;
    let _nodes = bench.pair(story()).await;
    let answer = |min_tokens: usize| body(json!({"stop": " ", "min_tokens": min_tokens, "max_tokens": 64}));
    assert_eq!(bench.json(COMPLETIONS, &answer(0)).await["choices"][0]["text"], "");
    let after_two = bench.json(COMPLETIONS, &answer(2)).await;
    assert_eq!(after_two["choices"][0]["text"], " there");
}

#[tokio::test]
async fn a_chat_without_a_limit_gets_the_operators() {
    let bench = Bench::with(|config| config.chat_max_tokens = 100).await;
    let (_prefill, mut decode) = bench.pair(story()).await;
    bench.json(CHAT, &chat(json!({"max_tokens": null}))).await;
    let Seen::Reserve(reserve) = decode.seen().await else { panic!("not a reservation") };
    assert_eq!(reserve.max_tokens, 100);
}

#[tokio::test]
async fn texts_become_tokens_and_come_back() {
    let bench = Bench::new().await;
    let wishes = json!({"model": "tiny", "prompt": "Once upon", "return_token_strs": true});
    let tokens = bench.json("/tokenize", &wishes).await;
    assert_eq!(tokens["tokens"], json!(tokenizer().encode("Once upon").unwrap()));
    assert_eq!(
        (&tokens["count"], &tokens["max_model_len"]),
        (&json!(tokens["tokens"].as_array().unwrap().len()), &json!(8192))
    );
    assert_eq!(tokens["token_strs"][0], "<|begin_of_text|>");
    let text = bench.json("/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(text["prompt"], "<|begin_of_text|>Once upon");
    let chat = bench.json("/tokenize", &json!({"messages": [{"role": "user", "content": "a"}]})).await;
    let text = bench.json("/detokenize", &json!({"tokens": chat["tokens"]})).await;
    assert_eq!(text["prompt"].as_str().unwrap().matches("<|begin_of_text|>").count(), 1);
    assert_eq!(bench.post_to("/detokenize", &json!({"tokens": [9999]})).await.status(), 400);
    assert_eq!(bench.post_to("/tokenize", &json!({"model": "other", "prompt": "a"})).await.status(), 404);
}

#[tokio::test]
async fn a_shorter_context_than_the_models_is_kept() {
    let bench = Bench::with(|config| config.max_model_len = Some(20)).await;
    let models = bench.client.get(bench.url("/v1/models/tiny")).send().await.unwrap().text().await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&models).unwrap()["max_model_len"], 20);
    let (status, error) = bench.refused(&body(json!({"max_tokens": 20}))).await;
    assert_eq!((status, error.code.as_deref()), (400, Some("context_length_exceeded")));
}

#[tokio::test]
async fn a_pinned_prefill_node_takes_the_request_or_nobody_does() {
    let bench = Bench::new().await;
    let (mut first, _decode) = bench.pair(story()).await;
    let mut second = bench.node("p2", Role::Prefill, Script::default()).await;
    bench.sees("kvferry_router_nodes{role=\"prefill\"} 2").await;
    let send = async |pin: &str| {
        let request = bench.client.post(bench.url(COMPLETIONS)).header("x-prefiller-host-port", pin);
        request.body(body(json!({"max_tokens": 64})).to_string()).send().await.unwrap()
    };
    for _ in 0..3 {
        assert_eq!(send("p2").await.status(), 200);
        assert!(matches!(second.seen().await, Seen::Prefill(..)));
    }
    assert_eq!(send("p1").await.status(), 200);
    assert!(matches!(first.seen().await, Seen::Prefill(..)));
    let refused = send("10.0.0.1:99").await;
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.unwrap().contains("prefill_node_not_found"));
}

#[tokio::test]
async fn requests_of_a_conversation_go_to_one_prefill_node() {
    let bench = Bench::new().await;
    let (mut first, _decode) = bench.pair(story()).await;
    let mut second = bench.node("p2", Role::Prefill, Script::default()).await;
    bench.sees("kvferry_router_nodes{role=\"prefill\"} 2").await;
    let mut taken = [0, 0];
    for session in 0..12 {
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let request =
                bench.client.post(bench.url(COMPLETIONS)).header("x-session-id", format!("s{session}"));
            let sent = request.body(body(json!({"max_tokens": 64})).to_string()).send().await.unwrap();
            assert_eq!(sent.status(), 200);
            nodes.push(tokio::select! { _ = first.seen() => 0, _ = second.seen() => 1 });
        }
        assert_eq!(nodes[0], nodes[1], "session {session}");
        taken[nodes[0]] += 1;
    }
    assert!(taken[0] > 0 && taken[1] > 0, "sessions spread: {taken:?}");
}

#[tokio::test]
async fn a_failed_prefill_is_an_error_or_a_local_one_as_the_operator_says() {
    for (policy, status) in [(router::PrefillFailure::Fail, 500), (router::PrefillFailure::Local, 200)] {
        let bench = Bench::with(|config| config.prefill_failure = policy).await;
        let _prefill = bench.node("p1", Role::Prefill, Script::refuses(FailureKind::Internal)).await;
        let _decode = bench.node("d1", Role::Decode, Script { only_local: true, ..story() }).await;
        bench.sees("kvferry_router_nodes{role=\"prefill\"} 1").await;
        bench.sees("kvferry_router_nodes{role=\"decode\"} 1").await;
        let response = bench.post(&body(json!({"max_tokens": 64, "kv_transfer": true}))).await;
        assert_eq!(response.status(), status, "{policy:?}");
        if status == 200 {
            let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(answer["kv_transfer"]["source"], "local");
            assert!(answer["kv_transfer"]["bypass_reason"].as_str().unwrap().contains("prefill failed"));
        }
    }
}

#[tokio::test]
async fn keys_guard_the_api_and_leave_probes_open() {
    let file = std::env::temp_dir().join(format!("kvferry-api-keys-{}", std::process::id()));
    std::fs::write(&file, "secret\n").unwrap();
    let bench = Bench::with(|config| config.api_key_file = Some(file.clone())).await;
    std::fs::remove_file(&file).unwrap();
    let _nodes = bench.pair(story()).await;
    for path in [COMPLETIONS, CHAT, "/tokenize", "/detokenize"] {
        let refused = bench.post_to(path, &body(json!({}))).await;
        assert_eq!(
            (refused.status().as_u16(), refused.headers()["www-authenticate"].to_str().unwrap()),
            (401, "Bearer")
        );
        assert!(refused.text().await.unwrap().contains("invalid_api_key"), "{path}");
    }
    assert_eq!(bench.client.get(bench.url("/v1/models")).send().await.unwrap().status(), 401);
    for path in ["/health", "/live", "/ready", "/metrics", "/version", "/openapi.json", "/docs"] {
        assert_eq!(bench.client.get(bench.url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    let request = bench.client.post(bench.url(COMPLETIONS)).bearer_auth("secret");
    assert_eq!(request.body(body(json!({"max_tokens": 64})).to_string()).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn browsers_may_call_from_allowed_origins() {
    let bench = Bench::with(|config| config.allowed_origins = vec!["https://a.example".into()]).await;
    let preflight = async |origin: &str| {
        let request =
            bench.client.request(reqwest::Method::OPTIONS, bench.url(COMPLETIONS)).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap()
    };
    let allowed = preflight("https://a.example").await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://a.example");
    assert!(preflight("https://b.example").await.headers().get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn every_described_field_is_read_and_every_described_route_is_there() {
    let bench = Bench::with(|config| config.kv_transfer_params = true).await;
    let description =
        bench.client.get(bench.url("/openapi.json")).send().await.unwrap().text().await.unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let wrong = bench.client.delete(bench.url(&path.replace("{model}", "tiny"))).send().await.unwrap();
        assert_eq!(wrong.status(), 405, "{path} is there, and does not take DELETE");
        assert!(methods.get("get").or_else(|| methods.get("post")).is_some(), "{path}");
    }
    for (path, schema) in [(COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")] {
        let fields = description["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let good = if path == CHAT { chat(json!({"max_tokens": null})) } else { body(json!({})) };
        for name in fields.keys() {
            // No field takes such a value, so a field that is read at all refuses it.
            let mut wrong = good.clone();
            wrong[name] = json!([[{"no": "such value"}]]);
            let response = bench.post_to(path, &wrong).await;
            let (status, text) = (response.status(), response.text().await.unwrap());
            assert_eq!(status, 400, "{path} {name}: {text}");
            let param: Value = serde_json::from_str(&text).unwrap();
            let param = param["error"]["param"].as_str().unwrap_or_default().to_owned();
            assert!(param.starts_with(name.as_str()), "{path} {name}: {text}");
        }
    }
}
