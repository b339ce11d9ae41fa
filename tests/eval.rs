//! What `kvferry eval` measures is what a cluster does: the same bytes on the wire, the same text from them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::Kit;
use cluster_tests::kit::{model_dir, tasks};
use codec::{CodecKind, Coding};
use kvferry::eval::{Input, PromptRow, Sets, Subject, Way, measure};
use serde_json::json;

const MAX_TOKENS: u32 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_has_the_same_bytes_and_the_same_answer_as_in_a_cluster() {
    let kit = Kit::start().await;
    let subject = Subject::load(&model_dir(), None).unwrap();
    for (task, tokens) in tasks(&kit.tokenizer, 2, 700).into_iter().zip([700, 300]) {
        // Cut at the front, so that one prompt is three chunks long and one two.
        let words: Vec<&str> = task.prompt.split(' ').collect();
        let prompt = words[words.len().saturating_sub(tokens)..].join(" ");
        for coding in [Coding::RAW, Coding { kind: CodecKind::Kvtc, tier: 32 }] {
            // A cache that another prompt has left differs in its last bits: there the prompt ran in other chunks.
            let extra = json!({
                "kv_codec": coding.kind.name(), "kv_tier": coding.tier.max(4), "stop": "\n",
                "cache_salt": coding.to_string(),
            });
            let answer = kit.complete(&prompt, MAX_TOKENS, extra).await;
            let said = answer.choices[0].text.trim().to_owned();
            let transfer = answer.kv_transfer.unwrap();
            let row = PromptRow { line: 1, input: Input::Text(prompt.clone()), answer: said, later: vec![] };
            let sets = Sets { prompts: vec![row], ..Sets::default() };
            let score = measure(&subject, &sets, &[Way::usual(coding)]).unwrap().remove(0);
            assert_eq!(score.em, Some(1.0), "{coding}");
            let wire_bytes = transfer.raw_bytes as f64 / score.whole_ratio;
            assert!(
                (wire_bytes - transfer.wire_bytes as f64).abs() < 0.01,
                "{coding}: {wire_bytes} {transfer:?}"
            );
        }
    }
    kit.stop().await;
}
