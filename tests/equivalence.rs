//! A cluster that sends caches raw gives, token for token, what one process gives; and the cache really moved.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::kit::metric;
use cluster_tests::{Kit, oracle};
use model::Sampling;
use serde_json::json;

const MAX_TOKENS: u32 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn raw_equals_a_single_process_run() {
    let kit = Kit::start().await;
    // One token, one chunk, one more than a chunk, and more than three chunks.
    for length in [2, 256, 257, 900] {
        let prompt = kit.prompt(length);
        let ids = kit.tokenizer.encode(&prompt).unwrap();
        assert_eq!(ids.len(), length);
        let expected = oracle::generate(&kit.loaded, &ids, MAX_TOKENS as usize, &Sampling::GREEDY);
        let answer = kit.complete(&prompt, MAX_TOKENS, json!({"kv_codec": "raw"})).await;
        assert_eq!(answer.choices[0].text, kit.tokenizer.decode(&expected), "{length} tokens");
        let usage = answer.usage.unwrap();
        assert_eq!(
            (usage.prompt_tokens as usize, usage.completion_tokens as usize),
            (length, expected.len())
        );
    }
    let decode = &kit.cluster.decode[0].registry;
    assert_eq!(metric(decode, "kvferry_decode_local_prefill_tokens_total"), 0.0);
    assert_eq!(metric(decode, "kvferry_decode_kv_raw_bytes_total"), f64::from(2 + 256 + 257 + 900) * 6144.0);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sampled_tokens_do_not_depend_on_the_split() {
    let kit = Kit::start().await;
    let prompt = kit.prompt(300);
    let ids = kit.tokenizer.encode(&prompt).unwrap();
    let mut texts = Vec::new();
    for seed in [1, 2] {
        let sampling = Sampling { temperature: 0.9, top_p: 0.95, top_k: 50, seed, ..Sampling::GREEDY };
        let expected = oracle::generate(&kit.loaded, &ids, MAX_TOKENS as usize, &sampling);
        let extra = json!({"kv_codec": "raw", "temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": seed});
        let answer = kit.complete(&prompt, MAX_TOKENS, extra).await;
        assert_eq!(answer.choices[0].text, kit.tokenizer.decode(&expected));
        texts.push(answer.choices[0].text.clone());
    }
    assert_ne!(texts[0], texts[1]);
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_prefill_says_so_and_equals_a_remote_one() {
    let kit = Kit::start_with(|options| options.router.local_prefill = router::LocalPrefill::Always).await;
    let prompt = kit.prompt(600);
    let ids = kit.tokenizer.encode(&prompt).unwrap();
    let expected = oracle::generate(&kit.loaded, &ids, MAX_TOKENS as usize, &Sampling::GREEDY);
    let answer = kit.complete(&prompt, MAX_TOKENS, json!({})).await;
    assert_eq!(answer.choices[0].text, kit.tokenizer.decode(&expected));
    let transfer = answer.kv_transfer.unwrap();
    assert_eq!(transfer.source, openai::KvSource::Local);
    assert_eq!((transfer.wire_bytes, transfer.ratio), (0, None));
    let decode = &kit.cluster.decode[0].registry;
    assert_eq!(metric(decode, "kvferry_decode_local_prefill_tokens_total"), 600.0);
    kit.stop().await;
}
