//! Sessions that are ready together are stepped together.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::Kit;
use cluster_tests::kit::metric;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn eight_sessions_take_fewer_steps_than_tokens() {
    let kit = Kit::start().await;
    let prompts: Vec<String> = (0..8).map(|i| kit.prompt(20 + 3 * i)).collect();
    kit.complete(&prompts[0], 64, json!({"kv_codec": "raw", "ignore_eos": true})).await;
    let registry = &kit.cluster.decode[0].registry;
    let count = |name: &str| metric(registry, name);
    let (steps, tokens) =
        (count("kvferry_decode_steps_total"), count("kvferry_decode_generated_tokens_total"));
    assert_eq!((steps, tokens), (63.0, 63.0), "one session takes a step a token; prefill gave the first");
    let all = prompts.iter().map(|p| kit.complete(p, 64, json!({"kv_codec": "raw", "ignore_eos": true})));
    let answers = join_all(all).await;
    let steps = count("kvferry_decode_steps_total") - steps;
    let tokens = count("kvferry_decode_generated_tokens_total") - tokens;
    assert_eq!(tokens, 8.0 * 63.0);
    assert!(steps < tokens / 2.0, "{steps} steps for {tokens} tokens");
    assert!(answers.iter().all(|a| a.usage.unwrap().completion_tokens == 64));
    assert_eq!(count("kvferry_decode_kv_used_tokens"), 0.0, "slots are free before the last answer is out");
    kit.stop().await;
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in pinned.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}
