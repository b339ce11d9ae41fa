//! What is decided for a pair as measurements come in.

use openai::KvOptions;
use transport::ids::NodeId;
use transport::message::{KvCoding, PrefillStats, Transfer};

use super::*;
use crate::measured::Gauges;
use crate::policy::Balance;
use crate::prefixes;

const RULES: Rules = Rules {
    local_prefill: LocalPrefill::Never,
    balance: Balance::LeastLoad,
    prefix_aware: true,
    bytes_per_token: 6144,
    keeps: false,
};

fn candidate(name: &str) -> Candidate {
    Candidate {
        node: NodeId(name.into()),
        address: ([127, 0, 0, 1], 9).into(),
        in_flight: 0,
        assigned: 0,
        kept: 0,
        ahead_tokens: 0,
        cached_tokens: 0,
        max_sessions: 8,
        max_session_tokens: 8192,
        has_plan: true,
        chunk_tokens: 256,
        after_chunk_tokens: 2048,
    }
}

fn wanted(prompt_tokens: u32, codec: KvCodec, mode: Wish) -> Wanted<'static> {
    Wanted {
        prompt_tokens,
        max_tokens: 8,
        kv: KvOptions { report: false, codec, tier: 32, mode, cache_salt: None },
        beginning: &prefixes::SHORT,
        pinned: None,
        affinity: None,
        kept: None,
        local: None,
    }
}

/// A pair on which a prompt of 1,000 tokens took 250 ms over a link of so many Gb/s.
fn measured(gbps: f32) -> Estimates {
    let estimates = Estimates::new(Gauges::new(&service::Registry::new()));
    let transfer = Transfer {
        coding: Some(KvCoding { codec: "kvtc".into(), tier: 32, mode: KvMode::After }),
        prefill_node: Some(NodeId("p".into())),
        raw_bytes: 6_144_000,
        wire_bytes: 320_000,
        wire_ms: 1.0,
        decode_ms: 24.0,
        prefill: PrefillStats { prefill_ms: 250.0, encode_ms: 25.0, link_gbps: gbps, ..Default::default() },
    };
    estimates.record(1000, &NodeId("d".into()), &transfer, Instant::now());
    estimates
}

fn decided(wanted: &Wanted<'_>, estimates: &Estimates) -> Choice {
    decide(wanted, &RULES, (&candidate("p"), &candidate("d")), estimates, false)
}

#[test]
fn before_anything_was_measured_long_prompts_are_coded_after_them_and_short_ones_are_not() {
    let nothing = Estimates::new(Gauges::new(&service::Registry::new()));
    for (tokens, mode, expected) in [
        (133, Wish::Auto, "kvtc/after"),
        (133, Wish::After, "kvtc/after"),
        (133, Wish::Stream, "kvtc"),
        (132, Wish::Auto, "raw"),
    ] {
        let choice = decided(&wanted(tokens, KvCodec::Auto, mode), &nothing);
        assert_eq!((choice.way.name().as_str(), choice.reason), (expected, Reason::Unmeasured));
        assert_eq!((choice.predicted_ms, choice.bypass_reason.is_some()), (None, expected == "raw"));
    }
    let bare = Candidate { has_plan: false, ..candidate("d") };
    let auto = wanted(900, KvCodec::Auto, Wish::Auto);
    let choice = decide(&auto, &RULES, (&candidate("p"), &bare), &nothing, false);
    assert_eq!(choice.way.name(), "raw");
    assert!(choice.bypass_reason.unwrap().contains("no calibrated plan"));
}

#[test]
fn a_slow_link_means_coding_and_a_fast_one_none() {
    let auto = wanted(1000, KvCodec::Auto, Wish::Auto);
    let slow = decided(&auto, &measured(0.05));
    assert_eq!((slow.reason, slow.bypass_reason.as_deref()), (Reason::Predicted, None));
    assert!(slow.way.name().starts_with("kvtc"), "{slow:?}");
    let fast = decided(&auto, &measured(10.0));
    assert_eq!(fast.way.name(), "raw");
    let (reason, predicted) = (fast.bypass_reason.unwrap(), fast.predicted_ms.unwrap());
    assert!(reason.starts_with("link is fast: raw predicted 25"), "{reason}");
    assert!((250.0..260.0).contains(&predicted), "{predicted}");
}

#[test]
fn a_mode_that_was_asked_for_leaves_the_other_out() {
    for (mode, expected) in [(Wish::Stream, "kvtc"), (Wish::After, "kvtc/after")] {
        let choice = decided(&wanted(1000, KvCodec::Auto, mode), &measured(0.02));
        assert_eq!(choice.way.name(), expected);
    }
}

#[test]
fn a_codec_that_was_asked_for_is_taken_whatever_it_costs_and_its_cost_is_told() {
    for (codec, mode, expected) in [
        (KvCodec::Raw, Wish::Auto, "raw"),
        (KvCodec::Kvtc, Wish::Auto, "kvtc/after"),
        (KvCodec::Kvtc, Wish::Stream, "kvtc"),
        (KvCodec::KvtcPaper, Wish::Auto, "kvtc-paper"),
    ] {
        let choice = decided(&wanted(1000, codec, mode), &measured(0.05));
        assert_eq!((choice.way.name().as_str(), choice.reason), (expected, Reason::Asked));
        assert_eq!(choice.bypass_reason, None);
        assert!(choice.predicted_ms.unwrap() > 250.0);
    }
}

#[test]
fn a_local_prompt_is_chosen_only_where_the_rule_allows_it() {
    let bare = |name| Candidate { has_plan: false, ..candidate(name) };
    let auto = wanted(1000, KvCodec::Auto, Wish::Auto);
    let choice = |local_prefill| {
        let rules = Rules { local_prefill, ..RULES };
        decide(&auto, &rules, (&bare("p"), &bare("d")), &measured(0.01), false)
    };
    assert_eq!(choice(LocalPrefill::Never).way.name(), "fp8");
    let local = choice(LocalPrefill::Auto);
    assert_eq!(local.way, Way::Local);
    assert!(local.bypass_reason.unwrap().contains("local predicted 250 ms, fp8"));
}

#[test]
fn a_queue_before_the_prefill_node_is_part_of_the_forecast() {
    let busy = Candidate { assigned: 3, ..candidate("p") };
    let raw = wanted(1000, KvCodec::Raw, Wish::Auto);
    let choice = decide(&raw, &RULES, (&busy, &candidate("d")), &measured(10.0), false);
    assert_eq!(choice.queue_ms, Some(750.0));
    assert!(choice.predicted_ms.unwrap() > 1000.0);
}
