//! `kv_codec: "auto"` on links of known speed: it measures, and then codes where coding is quicker.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use cluster_tests::Kit;
use openai::KvTransfer;
use serde_json::json;

const PROMPT: usize = 1_500;

/// Lets a cluster on a link of `gbps` answer the same prompt until what it did is `enough`, `most` times at most, and gives what
/// it did.
async fn answers(gbps: f64, most: usize, enough: impl Fn(&[KvTransfer]) -> bool) -> Vec<KvTransfer> {
    let on_link = |options: &mut kvferry::cluster::Options| {
        options.link_gbps = gbps;
        if gbps > 0.0 {
            // Over a link as slow as this, a prompt of one's own may be quickest of all.
            options.router.local_prefill = router::LocalPrefill::Never;
        }
    };
    let kit = Kit::start_with(on_link).await;
    let prompt = kit.prompt(PROMPT);
    let mut transfers = Vec::new();
    while transfers.len() < most && !enough(&transfers) {
        transfers.push(kit.complete(&prompt, 4, json!({})).await.kv_transfer.unwrap());
    }
    let (_, metrics) = kit.get("/metrics").await;
    for name in ["link_bytes_per_second", "prompt_token_seconds", "codec_ratio", "choices_total"] {
        assert!(metrics.contains(&format!("kvferry_router_{name}{{")), "{name} is not in\n{metrics}");
    }
    kit.stop().await;
    transfers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_is_measured_and_coded_for() {
    // So slow that coding wins even where other tests keep the machine busy and prompts take seconds.
    let transfers = answers(0.005, 4, |_| false).await;
    let (first, rest) = transfers.split_first().unwrap();
    assert_eq!((first.codec.as_deref(), first.mode.as_deref()), (Some("kvtc"), Some("after")));
    assert_eq!((first.predicted_ms, &first.bypass_reason), (None, &None), "nothing was known yet");
    for transfer in rest {
        assert_eq!(transfer.codec.as_deref(), Some("kvtc"), "{transfer:#?}");
        let measured = transfer.link_gbps.unwrap();
        assert!((0.004..0.006).contains(&measured), "{measured} Gb/s");
    }
    // Each forecast is of what the request before it has shown; a machine that is busy otherwise spoils a single one.
    let error = |transfer: &KvTransfer| (transfer.predicted_ms.unwrap() / transfer.ttft_ms - 1.0).abs();
    let best = rest.iter().map(error).reduce(f64::min).unwrap();
    assert!(best < 0.4, "forecasts are off by {best} at best: {rest:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_fast_link_nothing_is_coded_and_the_answer_says_why() {
    // How many requests it takes to see that the link is fast depends on how busy the machine is meanwhile: each choice rests on
    // measurements of the requests before it.
    let is_uncoded = |transfer: &KvTransfer| matches!(transfer.codec.as_deref(), None | Some("raw"));
    let settled = |transfers: &[KvTransfer]| {
        transfers.len() >= 3 && transfers[transfers.len() - 3..].iter().all(is_uncoded)
    };
    let transfers = answers(0.0, 20, settled).await;
    assert!(settled(&transfers), "{transfers:#?}");
    for transfer in &transfers[transfers.len() - 3..] {
        let reason = transfer.bypass_reason.as_deref().unwrap();
        assert!(reason.contains("predicted"), "{reason}");
        assert!(transfer.predicted_ms.unwrap() > 0.0);
    }
}
