//! Prompts that begin alike: what a prefill node has is not run again, the answer is the same, and the router sends them there.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::kit::{device, metric};
use cluster_tests::{Kit, oracle};
use model::Sampling;
use node::DeviceChoice;
use openai::Completion;
use serde_json::{Value, json};

const MAX_TOKENS: u32 = 16;
/// The last tokens of a prompt always run where their attention is counted.
const ALWAYS_RUN: u32 = 128;

fn cached(answer: &Completion) -> u32 {
    let cached = answer.usage.unwrap().prompt_tokens_details.cached_tokens;
    assert_eq!(answer.kv_transfer.as_ref().unwrap().cached_tokens, cached);
    cached
}

/// How many of so many tokens in common a node takes: whole pages on a GPU.
fn shareable(tokens: u32) -> u32 {
    if is_host() { tokens } else { tokens - tokens % 64 }
}

fn is_host() -> bool {
    device() == DeviceChoice::Cpu
}

fn expected(kit: &Kit, prompt: &str) -> String {
    let ids = kit.tokenizer.encode(prompt).unwrap();
    kit.tokenizer.decode(&oracle::generate(&kit.loaded, &ids, MAX_TOKENS as usize, &Sampling::GREEDY))
}

/// A cluster whose prefill node keeps so many tokens.
async fn keeping(tokens: u32) -> Kit {
    let mut kit = Kit::start_with(|options| options.prefill_nodes = 0).await;
    kit.cluster.add_prefill(|config| config.prefix_cache_tokens = Some(tokens)).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    kit
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_not_run_again_and_the_answer_is_the_same() {
    let kit = Kit::start().await;
    let history = kit.prompt(700);
    let next = format!("{history} And then the miller said that");
    let run = || metric(&kit.cluster.prefill[0].registry, "kvferry_prefill_prompt_tokens_total");
    let fields: [(Value, u32); 3] = [
        (json!({"kv_codec": "raw"}), 1),
        (json!({"kv_codec": "lossless"}), 1),
        (json!({"kv_codec": "kvtc", "kv_mode": "after"}), ALWAYS_RUN),
    ];
    for (fields, always_run) in fields {
        let salted = |fields: &Value| {
            let mut salted = fields.clone();
            salted["cache_salt"] = fields.to_string().into();
            salted
        };
        let first = kit.complete(&history, 1, salted(&fields)).await;
        assert_eq!(cached(&first), 0, "{fields}");
        let before = run();
        let second = kit.complete(&next, MAX_TOKENS, salted(&fields)).await;
        let tokens = second.usage.unwrap().prompt_tokens;
        // Where the two prompts meet a token may be another one.
        let common = [690, 700].map(|common: u32| shareable(common.min(tokens - always_run)));
        assert!(
            (common[0]..=common[1]).contains(&cached(&second)),
            "{fields}: {} of {tokens}",
            cached(&second)
        );
        assert_eq!(run() - before, f64::from(tokens - cached(&second)), "{fields}");
        let unshared = kit.complete(&next, MAX_TOKENS, fields.clone()).await;
        assert_eq!(second.choices[0].text, unshared.choices[0].text, "{fields}");
        if fields["kv_codec"] != "kvtc" && is_host() {
            assert_eq!(second.choices[0].text, expected(&kit, &next), "{fields}");
        }
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_prompt_again_runs_its_last_tokens() {
    let kit = Kit::start().await;
    let prompt = kit.prompt(400);
    for (fields, run) in [
        (json!({"kv_codec": "raw", "cache_salt": "a"}), 1),
        (json!({"kv_codec": "kvtc", "kv_mode": "stream", "cache_salt": "b"}), 1),
        (json!({"kv_codec": "kvtc", "kv_mode": "after", "cache_salt": "c"}), ALWAYS_RUN),
    ] {
        let texts = [0, shareable(400 - run)].map(async |expected| {
            let answer = kit.complete(&prompt, MAX_TOKENS, fields.clone()).await;
            assert_eq!(cached(&answer), expected, "{fields}");
            answer.choices[0].text.clone()
        });
        let [first, again] = texts;
        let first = first.await;
        assert_eq!(first, again.await, "{fields}");
    }
    // In a stream the final usage says so too, and choices of one prompt count what the first of them found.
    let fields = json!({"kv_codec": "raw", "n": 2, "temperature": 1, "cache_salt": "a"});
    let two = kit.complete(&prompt, 4, fields).await;
    assert_eq!(two.usage.unwrap().prompt_tokens_details.cached_tokens, shareable(399));
    let short = kit.prompt(60);
    for _ in 0..2 {
        assert_eq!(cached(&kit.complete(&short, 1, json!({})).await), 0, "too short to be worth it");
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn salts_and_limits_keep_prompts_apart() {
    let kit = keeping(1_000).await;
    let (one, other) = (kit.prompt(600), format!("Once more. {}", kit.prompt(590)));
    let raw = |salt: &str| json!({"kv_codec": "raw", "cache_salt": salt});
    let kept = || metric(&kit.cluster.prefill[0].registry, "kvferry_prefill_prefix_cache_tokens");
    assert_eq!(cached(&kit.complete(&one, 1, raw("mine")).await), 0);
    assert_eq!(cached(&kit.complete(&one, 1, raw("yours")).await), 0, "another's salt");
    // 600 tokens twice are more than 1,000.
    assert_eq!(kept(), 600.0);
    assert_eq!(cached(&kit.complete(&one, 1, raw("mine")).await), 0, "the one used longest ago is gone");
    assert_eq!(cached(&kit.complete(&one, 1, raw("mine")).await), shareable(599));
    assert_eq!(cached(&kit.complete(&other, 1, raw("mine")).await), 0, "another beginning");
    let response = kit.send(&json!({"model": "tiny-llama", "prompt": "x", "cache_salt": ""})).await;
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains(r#""param":"cache_salt""#));
    kit.stop().await;

    let kit = keeping(0).await;
    for _ in 0..2 {
        assert_eq!(cached(&kit.complete(&one, 1, raw("mine")).await), 0, "nothing is kept");
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_makes_room_for_prompts() {
    let mut kit = Kit::start_with(|options| options.prefill_nodes = 0).await;
    // On a GPU kept caches lie in the pages that prompts need.
    let small = |config: &mut prefill_node::Config| {
        config.node.kv_capacity_tokens = 1_024;
        config.node.max_num_seqs = 1;
    };
    kit.cluster.add_prefill(small).await.unwrap();
    kit.cluster.until_joined(2).await.unwrap();
    for i in 0..6 {
        // The last three have a beginning in common, which lies among the pages that they need.
        let beginning = if i < 3 { String::new() } else { kit.prompt(130) };
        let prompt = format!("{beginning} Story {i}. {}", kit.prompt(750));
        let answer = kit.complete(&prompt, 1, json!({"kv_codec": "raw"})).await;
        assert_eq!(cached(&answer) > 0, i > 3 && is_host(), "{i}");
        assert_eq!(answer.kv_transfer.unwrap().source, openai::KvSource::Remote, "{i}");
    }
    kit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_go_to_the_node_that_has_their_beginning() {
    let kit = Kit::start_with(|options| options.prefill_nodes = 3).await;
    let conversations: Vec<String> =
        (0..3).map(|i| format!("Conversation {i}. {}", kit.prompt(500))).collect();
    let (mut homes, mut kept) = (Vec::new(), 0);
    for prompt in &conversations {
        let answer = kit.complete(prompt, 1, json!({"kv_codec": "raw"})).await;
        homes.push(answer.kv_transfer.unwrap().prefill_node);
    }
    for turn in 1..4 {
        for (prompt, home) in conversations.iter().zip(&homes) {
            let prompt = format!("{prompt}{}", " And so on, and so on.".repeat(turn));
            let answer = kit.complete(&prompt, 1, json!({"kv_codec": "raw"})).await;
            let stayed = answer.kv_transfer.as_ref().unwrap().prefill_node == *home;
            assert!(!stayed || cached(&answer) > 400, "turn {turn}: {answer:?}");
            kept += u32::from(stayed);
        }
    }
    // A heartbeat that comes late on a busy machine makes a node look as if others used it, too, and sends a turn elsewhere.
    assert!(kept >= 7, "{kept} of 9 turns went to the node of their conversation");
    let (_, metrics) = kit.get("/metrics").await;
    let by_source = |source: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("vllm:prompt_tokens_by_source_total") && line.contains(source));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert!(by_source("local_cache_hit") > 7.0 * 400.0, "{metrics}");
    let hits: f64 =
        kit.cluster.prefill.iter().map(|node| metric(&node.registry, "vllm:prefix_cache_hits_total")).sum();
    assert_eq!(hits, by_source("local_cache_hit"));
    kit.stop().await;
}
