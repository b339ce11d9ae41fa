//! Tables of placements and retries.

use std::time::Duration;

use openai::{KvCodec, KvMode as Wish};
use transport::message::Failure;

use super::*;
use crate::measured::Gauges;
use crate::prefixes;

fn node(name: &str, in_flight: u32) -> Candidate {
    Candidate {
        node: NodeId(name.into()),
        address: ([127, 0, 0, 1], 9).into(),
        in_flight,
        assigned: in_flight,
        kept: 0,
        ahead_tokens: 0,
        cached_tokens: 0,
        max_sessions: 8,
        max_session_tokens: 1000,
        has_plan: true,
        chunk_tokens: 256,
        after_chunk_tokens: 2048,
    }
}

fn candidates(prefill: Vec<Candidate>, decode: Vec<Candidate>) -> Candidates {
    Candidates { prefill, decode }
}

fn wanted(prompt_tokens: u32, codec: KvCodec) -> Wanted<'static> {
    Wanted {
        prompt_tokens,
        max_tokens: 10,
        kv: KvOptions { report: false, codec, tier: 16, mode: Wish::Auto, cache_salt: None },
        beginning: &prefixes::SHORT,
        pinned: None,
        affinity: None,
        kept: None,
        local: None,
    }
}

const AUTO: Rules = Rules {
    local_prefill: LocalPrefill::Auto,
    balance: Balance::LeastLoad,
    prefix_aware: true,
    bytes_per_token: 6144,
    keeps: false,
};

fn nothing_known() -> Estimates {
    Estimates::new(Gauges::new(&service::Registry::new()))
}

/// Places with nothing measured.
fn place_new(candidates: &Candidates, wanted: &Wanted<'_>, rules: &Rules) -> Result<Placement, Unplaceable> {
    let turn = Turn { number: 0, explore: false };
    place(candidates, wanted, rules, turn, &nothing_known()).map(|(placement, _choice)| placement)
}

/// "prefill>decode:codec" or "decode", or the reason, with nothing measured.
fn placed(candidates: &Candidates, wanted: &Wanted<'_>, rules: &Rules, number: u64) -> String {
    let turn = Turn { number, explore: false };
    match place(candidates, wanted, rules, turn, &nothing_known()) {
        Ok((Placement::Split { prefill, decode, .. }, choice)) => {
            format!("{prefill}>{decode}:{}", choice.way.name())
        }
        Ok((Placement::Local { decode }, _)) => decode.0,
        Ok((Placement::Kept { decode }, choice)) => format!("kept>{decode}:{}", choice.way.name()),
        Err(reason) => reason.to_string(),
    }
}

#[test]
fn the_least_loaded_pair_is_chosen() {
    let nodes = candidates(vec![node("p1", 3), node("p2", 1)], vec![node("d1", 0), node("d2", 5)]);
    assert_eq!(placed(&nodes, &wanted(10, KvCodec::Auto), &AUTO, 7), "p2>d1:raw");
}

#[test]
fn load_is_relative_to_a_nodes_size() {
    let large = Candidate { max_sessions: 64, ..node("large", 8) };
    let nodes = candidates(vec![node("p", 0)], vec![large, node("small", 2)]);
    assert_eq!(placed(&nodes, &wanted(10, KvCodec::Auto), &AUTO, 0), "p>large:raw");
}

#[test]
fn equals_take_turns() {
    let nodes = candidates(vec![node("p", 0)], vec![node("d1", 1), node("d2", 1), node("d3", 2)]);
    let chosen: Vec<_> = (0..4).map(|turn| placed(&nodes, &wanted(10, KvCodec::Raw), &AUTO, turn)).collect();
    assert_eq!(chosen, ["p>d1:raw", "p>d2:raw", "p>d1:raw", "p>d2:raw"]);
}

#[test]
fn wishes_are_kept_and_need_a_plan_where_the_codec_does() {
    let without = |name| Candidate { has_plan: false, ..node(name, 0) };
    let both = candidates(vec![node("p", 0)], vec![node("d", 0)]);
    let one = candidates(vec![node("p", 0)], vec![without("d")]);
    for (nodes, prompt, codec, expected) in [
        (&both, 900, KvCodec::Raw, "p>d:raw"),
        (&both, 5, KvCodec::Kvtc, "p>d:kvtc/after"),
        (&both, 5, KvCodec::KvtcPaper, "p>d:kvtc-paper"),
        (&one, 900, KvCodec::Lossless, "p>d:lossless"),
        (&one, 5, KvCodec::Fp8, "p>d:fp8"),
    ] {
        assert_eq!(placed(nodes, &wanted(prompt, codec), &AUTO, 0), expected);
    }
    for codec in [KvCodec::Kvtc, KvCodec::KvtcPaper, KvCodec::KvtcPaperCodedWindow] {
        assert_eq!(place_new(&one, &wanted(900, codec), &AUTO), Err(Unplaceable::NoPlan));
    }
}

#[test]
fn a_wish_for_kvtc_goes_to_nodes_with_a_plan_even_if_they_are_busier() {
    let bare = Candidate { has_plan: false, ..node("bare", 0) };
    let nodes = candidates(vec![node("p", 0)], vec![bare, node("planned", 7)]);
    assert_eq!(placed(&nodes, &wanted(10, KvCodec::Kvtc), &AUTO, 0), "p>planned:kvtc/after");
}

#[test]
fn local_prefill_follows_the_rule() {
    let both = candidates(vec![node("p", 0)], vec![node("d", 0)]);
    let decode_only = candidates(vec![], vec![node("d", 0)]);
    for (rule, with_both, alone) in [
        (LocalPrefill::Auto, Ok("p>d:raw"), Ok("d")),
        (LocalPrefill::Always, Ok("d"), Ok("d")),
        (LocalPrefill::Never, Ok("p>d:raw"), Err(Unplaceable::NoPrefill)),
    ] {
        let rules = Rules { local_prefill: rule, ..AUTO };
        for (nodes, expected) in [(&both, with_both), (&decode_only, alone)] {
            let expected = expected.map_or_else(|reason| reason.to_string(), str::to_owned);
            assert_eq!(placed(nodes, &wanted(10, KvCodec::Auto), &rules, 0), expected, "{rule:?}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let none = Candidates::default();
    let prefill_only = candidates(vec![node("p", 0)], vec![]);
    for nodes in [none, prefill_only] {
        assert_eq!(place_new(&nodes, &wanted(1, KvCodec::Auto), &AUTO), Err(Unplaceable::NoDecode));
    }
}

#[test]
fn sessions_go_where_they_fit() {
    let short = Candidate { max_session_tokens: 100, ..node("short", 0) };
    let nodes = candidates(vec![node("p", 0)], vec![short, node("long", 7)]);
    assert_eq!(placed(&nodes, &wanted(90, KvCodec::Raw), &AUTO, 0), "p>short:raw");
    assert_eq!(placed(&nodes, &wanted(91, KvCodec::Raw), &AUTO, 0), "p>long:raw");
    let too_long = Unplaceable::TooLong { needed: 1001, longest: 1000 };
    assert_eq!(place_new(&nodes, &wanted(991, KvCodec::Raw), &AUTO), Err(too_long));
}

#[test]
fn only_what_another_node_can_mend_is_tried_again() {
    let failed = |kind| Cause::Failed(Failure { kind, message: String::new() });
    let deadline = |phase| Cause::Deadline { phase, after: Duration::ZERO };
    for (cause, expected) in [
        (failed(FailureKind::Busy), true),
        (failed(FailureKind::Unreachable), true),
        (failed(FailureKind::Draining), true),
        (failed(FailureKind::Invalid), false),
        (failed(FailureKind::Timeout), false),
        (failed(FailureKind::Transfer), false),
        (failed(FailureKind::Internal), false),
        (Cause::Lost("gone".into()), true),
        (deadline(Phase::Reserve), true),
        (deadline(Phase::FirstToken), false),
        (deadline(Phase::NextToken), false),
        (Cause::Protocol("nonsense".into()), false),
    ] {
        assert_eq!(may_retry(&cause), expected, "{cause:?}");
    }
}

#[test]
fn a_pinned_node_is_known_by_name_or_address() {
    let other = Candidate { address: ([10, 0, 0, 7], 4000).into(), ..node("q", 7) };
    let nodes = candidates(vec![node("p", 0), other], vec![node("d", 0)]);
    let pinned = |pinned| {
        let wanted = Wanted { pinned: Some(pinned), ..wanted(10, KvCodec::Raw) };
        placed(&nodes, &wanted, &AUTO, 0)
    };
    assert_eq!((pinned("q"), pinned("10.0.0.7:4000")), ("q>d:raw".into(), "q>d:raw".into()));
    for stranger in ["10.0.0.7", "10.0.0.7:4001", "Q", ""] {
        assert!(pinned(stranger).contains("no prefill node is called"), "{stranger}");
    }
}

#[test]
fn a_conversation_keeps_its_node_until_that_is_much_fuller() {
    let placed_with = |affinity, loads: [u32; 3]| {
        let prefill = ["a", "b", "c"].iter().zip(loads).map(|(name, load)| node(name, load)).collect();
        let wanted = Wanted { affinity: Some(affinity), ..wanted(10, KvCodec::Raw) };
        placed(&candidates(prefill, vec![node("d", 0)]), &wanted, &AUTO, affinity)
    };
    let homes: Vec<_> = (0..60).map(|affinity| placed_with(affinity, [0; 3])).collect();
    for name in ["a", "b", "c"] {
        let share = homes.iter().filter(|home| home.starts_with(name)).count();
        assert!((8..=32).contains(&share), "{name} has {share} of 60 conversations");
    }
    let of_a = homes.iter().position(|home| home.starts_with('a')).unwrap() as u64;
    // A quarter of its eight sessions more is borne, more than that is not.
    assert!(placed_with(of_a, [2, 0, 0]).starts_with('a'));
    assert!(!placed_with(of_a, [3, 0, 0]).starts_with('a'));
}

#[test]
fn a_prompt_goes_where_it_is_done_first() {
    let node = |name, assigned, ahead_tokens, cached_tokens| Candidate {
        ahead_tokens,
        cached_tokens,
        ..node(name, assigned)
    };
    let placed_on = |prefill: [Candidate; 2], rules: &Rules| {
        let nodes = candidates(prefill.to_vec(), vec![super::tests::node("d", 0)]);
        placed(&nodes, &wanted(600, KvCodec::Raw), rules, 0)
    };
    let fresh = |ahead| node("fresh", u32::from(ahead > 0), ahead, 0);
    // Half of it is known to a node that has as much to do as the other, and then so much more that the gain is gone.
    for (ahead, expected) in [(0, "knows"), (299, "knows"), (301, "fresh")] {
        let placed = placed_on([fresh(0), node("knows", u32::from(ahead > 0), ahead, 300)], &AUTO);
        assert_eq!(placed, format!("{expected}>d:raw"), "{ahead} tokens ahead");
    }
    // What other routers have given a node counts as prompts of the same length.
    let elsewhere = Candidate { in_flight: 1, ..node("knows", 0, 0, 300) };
    assert_eq!(placed_on([fresh(0), elsewhere], &AUTO), "fresh>d:raw");
    // A full node is not asked, whatever it knows, be it full of requests or of caches that others will ask for.
    for full in [node("knows", 8, 0, 300), Candidate { kept: 8, ..node("knows", 0, 0, 300) }] {
        assert_eq!(placed_on([fresh(500), full], &AUTO), "fresh>d:raw");
    }
    let unaware = Rules { prefix_aware: false, ..AUTO };
    assert_eq!(placed_on([fresh(0), node("knows", 1, 0, 300)], &unaware), "fresh>d:raw");
}

#[test]
fn the_better_of_two_at_random_is_never_the_fullest() {
    let rules = Rules { balance: Balance::PowerOfTwo, ..AUTO };
    let prefill = ["a", "b", "c", "d"].iter().zip(0..).map(|(name, load)| node(name, load)).collect();
    let nodes = candidates(prefill, vec![node("x", 0)]);
    let placed = |turn| placed(&nodes, &wanted(10, KvCodec::Raw), &rules, turn);
    let chosen: Vec<_> = (0..600).map(|turn| placed(turn).chars().next().unwrap()).collect();
    // Of four nodes the emptiest is in half of all pairs, the next in a third without it, and so on.
    for (name, expected) in [('a', 300), ('b', 200), ('c', 100), ('d', 0)] {
        let count = chosen.iter().filter(|chosen| **chosen == name).count();
        assert!(count.abs_diff(expected) < 50, "{name} was chosen {count} times of 600, {expected} expected");
    }
}

#[test]
fn a_cache_that_did_not_come_is_told_from_a_request_that_is_wrong() {
    let error = |role, cause| NodeError { node: NodeId("n".into()), role, cause };
    let failed = |kind| Cause::Failed(transport::message::Failure { kind, message: String::new() });
    for (role, cause, expected) in [
        (Role::Prefill, failed(FailureKind::Internal), true),
        (Role::Decode, failed(FailureKind::Internal), false),
        (Role::Decode, failed(FailureKind::Transfer), true),
        (Role::Decode, failed(FailureKind::Unreachable), true),
        (Role::Prefill, failed(FailureKind::Invalid), false),
        (Role::Prefill, Cause::Lost("gone".into()), true),
        (Role::Decode, Cause::Lost("gone".into()), false),
    ] {
        let error = error(role, cause);
        assert_eq!(is_prefill_failure(&error), expected, "{error}");
    }
}

#[test]
fn a_kept_cache_needs_a_decode_node_that_can_read_it_and_no_prefill_node() {
    let kept = Wanted { kept: Some((KvCodec::Kvtc, KvMode::After)), ..wanted(10, KvCodec::Auto) };
    let poor = Candidate { has_plan: false, ..node("poor", 0) };
    let nodes = candidates(vec![], vec![poor.clone(), node("rich", 5)]);
    assert_eq!(placed(&nodes, &kept, &AUTO, 0), "kept>rich:kvtc/after");
    let lost = Wanted { local: Some(Bypass::PrefillFailed), ..kept };
    assert_eq!(placed(&nodes, &lost, &AUTO, 0), "poor");
    assert_eq!(place_new(&candidates(vec![], vec![poor]), &kept, &AUTO), Err(Unplaceable::NoPlan));
}

#[test]
fn a_cache_that_is_to_be_kept_is_coded_by_what_the_node_can() {
    let turn = Turn { number: 0, explore: false };
    let coding = |node: Candidate, wanted: &Wanted<'_>| {
        let (_, coding) = place_keeper(&candidates(vec![node], vec![]), wanted, &AUTO, turn)?;
        Ok((coding.codec, coding.mode))
    };
    let told = |codec: &str, mode| Ok((codec.to_owned(), mode));
    let poor = || Candidate { has_plan: false, ..node("p", 0) };
    assert_eq!(coding(node("p", 0), &wanted(500, KvCodec::Auto)), told("kvtc", KvMode::After));
    assert_eq!(coding(node("p", 0), &wanted(100, KvCodec::Auto)), told("lossless", KvMode::Stream));
    assert_eq!(coding(poor(), &wanted(500, KvCodec::Auto)), told("lossless", KvMode::Stream));
    assert_eq!(coding(node("p", 0), &wanted(500, KvCodec::Fp8)), told("fp8", KvMode::Stream));
    assert_eq!(coding(poor(), &wanted(500, KvCodec::Kvtc)), Err(Unplaceable::NoPlan));
    assert_eq!(
        place_keeper(&Candidates::default(), &wanted(500, KvCodec::Auto), &AUTO, turn),
        Err(Unplaceable::NoPrefill)
    );
}
