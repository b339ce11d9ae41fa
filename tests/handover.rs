//! Caches that are handed over from a prefill node's face to a decode node's, by a proxy that speaks vLLM's `kv_transfer_params`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::{Duration, SystemTime};

use cluster_tests::Kit;
use cluster_tests::faces::{Faces, prefill_config, start_prefill, whole};
use cluster_tests::kit::metric;
use serde_json::{Value, json};
use transport::Authority;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn completion(prompt: &str) -> Value {
    json!({"model": "tiny-llama", "prompt": prompt, "max_tokens": 12, "temperature": 0, "kv_transfer": true})
}

fn with(mut body: Value, fields: Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn long_prompt() -> String {
    (1..60).map(|number| format!("The {number}th lantern stood near the old mill before noon. ")).collect()
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxied_request_gives_what_a_cluster_gives() {
    let (kit, faces) = (Kit::start().await, Faces::start(|_, _| {}).await);
    let prompt = kit.prompt(600);
    for codec in ["raw", "lossless", "fp8", "kvtc"] {
        let expected = kit.complete(&prompt, 12, json!({"kv_codec": codec})).await;
        let body = with(completion(&prompt), json!({"kv_codec": codec}));
        let answer = faces.proxied(COMPLETIONS, &body).await;
        assert_eq!(
            (answer.status, &answer.text),
            (200, &expected.choices[0].text),
            "{codec}: {}",
            answer.body
        );
        let transfer = &answer.body["kv_transfer"];
        assert_eq!((&transfer["source"], &transfer["codec"]), (&json!("remote"), &json!(codec)));
        assert_eq!(transfer["raw_bytes"], 600 * 6144);
        assert_eq!(transfer["prefill_node"], faces.prefill.id.0.as_str());
        let (raw, wire) = (transfer["raw_bytes"].as_u64().unwrap(), transfer["wire_bytes"].as_u64().unwrap());
        assert!((wire < raw) == (codec != "raw"), "{codec}: {wire} of {raw}");
    }
    faces.until_free().await;
    let counted = |name| metric(&faces.decode.registry, name);
    assert_eq!(counted("kvferry_decode_local_prefill_tokens_total"), 0.0);
    assert_eq!(counted("kvferry_decode_kv_raw_bytes_total"), f64::from(4 * 600 * 6144));
    assert_eq!(
        metric(&faces.prefill.registry, "kvferry_prefill_kv_raw_bytes_total"),
        f64::from(4 * 600 * 6144)
    );
    faces.stop().await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_chats_are_handed_over_alike() {
    let faces = Faces::start(|_, _| {}).await;
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    let messages = json!([{"role": "user", "content": long_prompt()}]);
    let chat = json!({
        "model": "tiny-llama", "messages": messages, "max_completion_tokens": 12, "temperature": 0, "ignore_eos": true,
        "kv_transfer": true,
    });
    for (path, body) in [(COMPLETIONS, completion(&long_prompt())), (CHAT, chat)] {
        let at_once = faces.proxied(path, &body).await;
        let streamed = faces.proxied(path, &with(body.clone(), usage.clone())).await;
        assert_eq!((at_once.status, &at_once.text), (200, &streamed.text), "{path}");
        assert!(!at_once.text.is_empty());
        for answer in [&at_once.body, &streamed.body] {
            // Without a word about codecs a prompt of this length is transform coded where there is a plan.
            assert_eq!(answer["kv_transfer"]["codec"], "kvtc", "{answer}");
            assert_eq!(answer["usage"]["completion_tokens"], 12);
            assert_eq!(answer["kv_transfer_params"], Value::Null, "nothing is left to be taken");
        }
        // The decode node alone gives the same, but for what coding changes.
        let local = whole(faces.post(&faces.decode, path, &body).await).await;
        assert_eq!((local.status, &local.body["kv_transfer"]["source"]), (200, &json!("local")));
    }
    faces.until_free().await;
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_prefill_node_answers_is_what_vllms_proxies_look_for() {
    let faces = Faces::start(|_, _| {}).await;
    let body = completion(&long_prompt());
    let (first, params) = faces.keep(COMPLETIONS, &body).await;
    assert_eq!(first.body["usage"]["completion_tokens"], 1);
    assert_eq!(first.body["choices"][0]["finish_reason"], "length");
    assert_eq!((&params["do_remote_prefill"], &params["do_remote_decode"]), (&json!(true), &json!(false)));
    assert_eq!(params["remote_engine_id"], faces.prefill.id.0.as_str());
    assert_eq!((&params["remote_block_ids"], &params["tp_size"]), (&json!([]), &json!(1)));
    assert_eq!(params["remote_host"], "127.0.0.1");
    assert_eq!(params["remote_port"], faces.prefill.quic_address.port());
    assert_eq!(params["remote_num_tokens"], first.body["usage"]["prompt_tokens"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let left = params["remote_blocks_expiry_time"].as_u64().unwrap().saturating_sub(now);
    assert!((60..=120).contains(&left), "{left} s left");
    assert_eq!(metric(&faces.prefill.registry, "kvferry_prefill_kv_leases_active"), 1.0);
    let whole = faces.take(COMPLETIONS, &body, &params).await;
    assert!(whole.text.starts_with(&first.text), "{:?} begins {:?}", first.text, whole.text);
    // Log-probabilities of the first token travel with the cache.
    let body = with(body, json!({"logprobs": 2}));
    let (first, params) = faces.keep(COMPLETIONS, &body).await;
    let whole = faces.take(COMPLETIONS, &body, &params).await;
    let logprob = |body: &Value| body["choices"][0]["logprobs"]["token_logprobs"][0].clone();
    assert_eq!((whole.status, logprob(&whole.body)), (200, logprob(&first.body)));
    faces.until_free().await;
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_cache_is_given_once_and_for_its_prompt_only() {
    let faces = Faces::start(|_, _| {}).await;
    let body = completion(&long_prompt());
    let (_, params) = faces.keep(COMPLETIONS, &body).await;
    for (wrong, said) in [
        (with(body.clone(), json!({"prompt": format!("{}x", long_prompt())})), "another prompt"),
        (with(body.clone(), json!({"logprobs": 1})), "logprobs"),
    ] {
        let refused = faces.take(COMPLETIONS, &wrong, &params).await;
        assert_eq!((refused.status, code(&refused.body)), (400, "kv_ticket_refused"), "{}", refused.body);
        assert!(refused.body["error"]["message"].as_str().unwrap().contains(said), "{}", refused.body);
        assert_eq!(refused.body["error"]["param"], "kv_transfer_params.kvferry_ticket");
    }
    let torn = with(params.clone(), json!({"kvferry_ticket": "AAAA"}));
    let refused = faces.take(COMPLETIONS, &body, &torn).await;
    assert_eq!((refused.status, code(&refused.body)), (400, "kv_ticket_refused"), "{}", refused.body);
    // None of that used it up.
    assert_eq!(faces.take(COMPLETIONS, &body, &params).await.status, 200);
    let again = faces.take(COMPLETIONS, &body, &params).await;
    assert_eq!((again.status, code(&again.body)), (502, "kv_transfer_failed"), "{}", again.body);
    assert!(again.body["error"]["message"].as_str().unwrap().contains("delivered already"), "{}", again.body);
    faces.until_free().await;
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_has_ended_is_an_error_or_a_local_prefill() {
    for policy in [node::PrefillFailure::Fail, node::PrefillFailure::Local] {
        let faces = Faces::start(|prefill, decode| {
            prefill.lease_seconds = 1;
            decode.prefill_failure = policy;
        })
        .await;
        let body = completion(&long_prompt());
        let (_, params) = faces.keep(COMPLETIONS, &body).await;
        faces.until_free().await;
        assert_eq!(metric(&faces.prefill.registry, "kvferry_prefill_kv_leases_expired_total"), 1.0);
        let late = faces.take(COMPLETIONS, &body, &params).await;
        expect(policy, &late.body, late.status, "kv_transfer_failed");
        faces.until_free().await;
        faces.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_node_that_has_gone_is_an_error_or_a_local_prefill() {
    for policy in [node::PrefillFailure::Fail, node::PrefillFailure::Local] {
        let faces = Faces::start(|_, decode| decode.prefill_failure = policy).await;
        let body = completion(&long_prompt());
        // One has been served, so there is a connection, which must not be waited for.
        assert_eq!(faces.proxied(COMPLETIONS, &body).await.status, 200);
        let (_, params) = faces.keep(COMPLETIONS, &body).await;
        faces.prefill.shutdown.end();
        faces.prefill.finished().await;
        let lost = faces.take(COMPLETIONS, &body, &params).await;
        expect(policy, &lost.body, lost.status, "node_unreachable");
        faces.until_free().await;
        faces.stop().await;
    }
}

/// What a decode node answers when there is no cache.
fn expect(policy: node::PrefillFailure, body: &Value, status: u16, expected: &str) {
    match policy {
        node::PrefillFailure::Fail => assert_eq!((status, code(body)), (502, expected), "{body}"),
        node::PrefillFailure::Local => {
            assert_eq!((status, &body["kv_transfer"]["source"]), (200, &json!("local")), "{body}");
            let why = body["kv_transfer"]["bypass_reason"].as_str().unwrap();
            assert!(why.contains("prefill failed"), "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faces_refuse_what_their_node_does_not_do() {
    let faces = Faces::start(|_, _| {}).await;
    let body = completion("Once");
    let keep = |fields: Value| {
        let one = json!({"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}});
        with(with(body.clone(), one), fields)
    };
    for (node, wrong, param, code) in [
        (&faces.prefill, body.clone(), "kv_transfer_params", "other_node"),
        (&faces.decode, keep(json!({})), "kv_transfer_params", "other_node"),
        (&faces.prefill, keep(json!({"n": 2})), "n", "invalid_value"),
        (&faces.prefill, keep(json!({"stream": true})), "stream", "invalid_value"),
        (&faces.prefill, keep(json!({"prompt": ["a", "b"]})), "prompt", "invalid_value"),
        (&faces.prefill, keep(json!({"max_tokens": 2})), "max_tokens", "invalid_value"),
        (&faces.prefill, keep(json!({"kv_transfer_params": 1})), "kv_transfer_params", "invalid_type"),
        (
            &faces.decode,
            keep(json!({"kv_transfer_params": {"do_remote_prefill": true, "remote_host": "10.0.0.1"}})),
            "kv_transfer_params.kvferry_ticket",
            "missing_field",
        ),
    ] {
        let refused = whole(faces.post(node, COMPLETIONS, &wrong).await).await;
        let error = &refused.body["error"];
        assert_eq!(
            (refused.status, &error["param"], &error["code"]),
            (400, &json!(param), &json!(code)),
            "{wrong}: {error}"
        );
    }
    faces.until_free().await;
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_caches_count_against_the_nodes_room() {
    let faces = Faces::start(|prefill, _| prefill.node.max_num_seqs = 1).await;
    let body = completion(&long_prompt());
    let (_, params) = faces.keep(COMPLETIONS, &body).await;
    let one_more =
        with(body.clone(), json!({"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}}));
    let refused = whole(faces.post(&faces.prefill, COMPLETIONS, &one_more).await).await;
    assert_eq!((refused.status, code(&refused.body)), (429, "node_busy"), "{}", refused.body);
    assert_eq!(faces.take(COMPLETIONS, &body, &params).await.status, 200);
    faces.until_free().await;
    assert_eq!(faces.proxied(COMPLETIONS, &body).await.status, 200);
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_can_be_either_instance_where_its_router_is_told_so() {
    let kit = Kit::start_with(|options| options.router.kv_transfer_params = true).await;
    let prompt = kit.prompt(300);
    let body = completion(&prompt);
    let keep =
        json!({"max_tokens": 1, "cache_salt": "kept", "kv_transfer_params": {"do_remote_decode": true}});
    let first: Value = kit.send(&with(body.clone(), keep)).await.json().await.unwrap();
    let second = with(body, json!({"kv_transfer_params": first["kv_transfer_params"]}));
    let answer = whole(kit.send(&second).await).await;
    assert_eq!(
        (answer.status, &answer.body["kv_transfer"]["source"]),
        (200, &json!("remote")),
        "{}",
        answer.body
    );
    let ordinary = kit.complete(&prompt, 12, json!({"kv_codec": "kvtc"})).await;
    assert_eq!(answer.text, ordinary.choices[0].text);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_have_a_face_beside_its_router() {
    let mut kit = Kit::start_with(|options| (options.prefill_nodes, options.decode_nodes) = (0, 0)).await;
    let any_port = Some(([127, 0, 0, 1], 0).into());
    let prefill = kit.cluster.add_prefill(|config| config.node.face.http = any_port).await.unwrap();
    let decode = kit.cluster.add_decode(|config| config.node.face.http = any_port).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    let faces = Faces::of(prefill, decode).await;
    let prompt = kit.prompt(300);
    let routed = kit.complete(&prompt, 12, json!({"kv_codec": "kvtc", "cache_salt": "routed"})).await;
    assert_eq!(routed.kv_transfer.unwrap().source, openai::KvSource::Remote);
    let body = with(completion(&prompt), json!({"kv_codec": "kvtc"}));
    let proxied = faces.proxied(COMPLETIONS, &body).await;
    assert_eq!((proxied.status, &proxied.text), (200, &routed.choices[0].text), "{}", proxied.body);
    faces.until_free().await;
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_node_that_drains_still_gives_what_it_keeps() {
    let faces = Faces::start(|_, _| {}).await;
    let body = completion(&long_prompt());
    let (_, params) = faces.keep(COMPLETIONS, &body).await;
    faces.prefill.shutdown.drain();
    let ended = tokio::spawn({
        let node = faces.prefill.clone();
        async move { node.finished().await }
    });
    assert_eq!(faces.take(COMPLETIONS, &body, &params).await.status, 200);
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
    faces.until_free().await;
    faces.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_face_that_cannot_say_where_it_is_does_not_start() {
    let authority = Authority::new().unwrap();
    let mut config = prefill_config();
    config.node.listen = ([0, 0, 0, 0], 0).into();
    let said = start_prefill(&config, &authority).await.unwrap_err().to_string();
    assert!(said.contains("--advertise") && said.contains("0.0.0.0"), "{said}");
    config.advertise = Some(([127, 0, 0, 1], 7001).into());
    let node = start_prefill(&config, &authority).await.unwrap();
    node.shutdown.drain();
    tokio::time::timeout(Duration::from_secs(10), node.finished()).await.unwrap();
}
