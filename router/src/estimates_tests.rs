//! What requests teach, and what they cannot.

use std::time::Duration;

use transport::message::{KvCoding, PrefillStats};

use super::*;
use crate::line::MAX_AGE;

const RAW_PER_TOKEN: u64 = 6144;

fn estimates() -> Estimates {
    Estimates::new(Gauges::new(&service::Registry::new()))
}

fn id(name: &str) -> NodeId {
    NodeId(name.into())
}

/// A prompt of `tokens` tokens: 1 ms each, coded at 100 MB/s, decoded at 200 MB/s, to a tenth.
fn transfer(codec: &str, mode: KvMode, tokens: u64) -> Transfer {
    let raw_bytes = tokens * RAW_PER_TOKEN;
    Transfer {
        coding: Some(KvCoding { codec: codec.into(), tier: 32, mode }),
        prefill_node: Some(id("p")),
        raw_bytes,
        wire_bytes: raw_bytes / 10,
        wire_ms: 1.0,
        decode_ms: raw_bytes as f32 / 2e5,
        prefill: PrefillStats {
            cached_tokens: 0,
            queue_ms: 0.0,
            prefill_ms: tokens as f32,
            encode_ms: raw_bytes as f32 / 1e5,
            overlap: 0.0,
            link_gbps: 0.8,
        },
    }
}

fn coder(estimates: &Estimates, codec: KvCodec, mode: KvMode, tokens: u32, now: Instant) -> Coder {
    let raw = f64::from(tokens) * RAW_PER_TOKEN as f64;
    estimates.coder((codec, mode), 32, tokens, raw, now)
}

#[test]
fn one_request_teaches_node_link_and_codec() {
    let (estimates, now) = (estimates(), Instant::now());
    let before = estimates.pair(&id("p"), &id("d"), now);
    assert!(before.prefill.is_none() && before.link.is_none());
    estimates.record(1000, &id("d"), &transfer("kvtc", KvMode::After, 1000), now);
    let pair = estimates.pair(&id("p"), &id("d"), now);
    assert!((pair.prefill.unwrap().ms(500.0) - 500.0).abs() < 1e-3);
    assert!(pair.local.is_none(), "the decode node ran nothing");
    assert!((pair.link.unwrap() - 1e5).abs() < 1.0, "bytes a millisecond at 0.8 Gb/s");
    assert!(estimates.pair(&id("p"), &id("other"), now).link.is_none());
    // The other mode is taken to be the same until it was seen.
    for mode in [KvMode::After, KvMode::Stream] {
        let coder = coder(&estimates, KvCodec::Kvtc, mode, 1000, now);
        assert!((coder.encode / 1e5 - 1.0).abs() < 0.01 && (coder.decode / 2e5 - 1.0).abs() < 0.01);
        assert!((coder.wire_bytes / 614_400.0 - 1.0).abs() < 0.01, "{}", coder.wire_bytes);
    }
    let short = coder(&estimates, KvCodec::Kvtc, KvMode::After, 150, now);
    assert!(short.wire_bytes > 0.15 * 614_400.0 * 1.3, "sinks and window weigh more in a short prompt");
}

#[test]
fn a_local_prompt_teaches_the_decode_nodes_speed_alone() {
    let (estimates, now) = (estimates(), Instant::now());
    let local = Transfer { coding: None, prefill_node: None, ..transfer("raw", KvMode::Stream, 100) };
    estimates.record(100, &id("d"), &local, now);
    let pair = estimates.pair(&id("p"), &id("d"), now);
    assert!(pair.local.is_some() && pair.prefill.is_none() && pair.link.is_none());
}

#[test]
fn numbers_that_cannot_be_are_left_out() {
    let (estimates, now) = (estimates(), Instant::now());
    for nonsense in [f32::NAN, f32::INFINITY, -1.0, 0.0] {
        let mut bad = transfer("kvtc", KvMode::After, 1000);
        (bad.decode_ms, bad.wire_bytes) = (nonsense, 0);
        bad.prefill.prefill_ms = nonsense;
        bad.prefill.encode_ms = nonsense;
        bad.prefill.link_gbps = nonsense;
        estimates.record(1000, &id("d"), &bad, now);
    }
    let mut unknown = transfer("zip", KvMode::After, 1000);
    unknown.prefill.prefill_ms = 0.0;
    unknown.prefill.link_gbps = 0.0;
    estimates.record(0, &id("d"), &unknown, now);
    let pair = estimates.pair(&id("p"), &id("d"), now);
    assert!(pair.prefill.is_none() && pair.link.is_none());
    let fresh = coder(&estimates, KvCodec::Kvtc, KvMode::After, 1000, now);
    assert_eq!(fresh.encode, guessed_speed(KvCodec::Kvtc));
}

#[test]
fn what_is_old_or_of_a_node_that_left_is_not_known_any_more() {
    let (estimates, now) = (estimates(), Instant::now());
    estimates.record(1000, &id("d"), &transfer("kvtc", KvMode::After, 1000), now);
    let later = now + MAX_AGE + Duration::from_secs(1);
    assert!(estimates.pair(&id("p"), &id("d"), later).link.is_none());
    assert_eq!(
        coder(&estimates, KvCodec::Kvtc, KvMode::After, 9, later).encode,
        guessed_speed(KvCodec::Kvtc)
    );
    assert!(estimates.pair(&id("p"), &id("d"), now).link.is_some());
    estimates.forget(&id("d"), now);
    let pair = estimates.pair(&id("p"), &id("d"), now);
    assert!(pair.link.is_none() && pair.prefill.is_some());
}

#[test]
fn guesses_are_those_of_the_documentation() {
    for (codec, tokens, ratio) in [
        (KvCodec::Raw, 500.0, 1.0),
        (KvCodec::Lossless, 500.0, 1.5),
        (KvCodec::Fp8, 500.0, 2.4),
        (KvCodec::Kvtc, 1e9, 0.7 * 32.0),
        (KvCodec::Kvtc, 100.0, 4.0),
    ] {
        let guessed = tokens / guess(codec, 32, tokens, tokens);
        assert!((guessed / ratio - 1.0).abs() < 1e-3, "{codec} {tokens}: {guessed}");
    }
}
