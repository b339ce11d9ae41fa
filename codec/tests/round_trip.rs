//! What goes in comes out: exactly for raw and sinks, within the quantizer's bounds for the rest.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::OnceLock;

use codec::{CodecKind, Coding, Error, KvBlock, fit::Balance};
use common::{Source, cut, relative_error, same_bits, small_layout};
use half::bf16;
use proptest::prelude::*;

fn source() -> &'static (Source, std::sync::Arc<codec::Plan>) {
    static SOURCE: OnceLock<(Source, std::sync::Arc<codec::Plan>)> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let source = Source::new(small_layout(), 24, 1);
        let plan = source.plan(None, Balance::EqualBytes);
        (source, plan)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn raw_is_exact_for_any_bits(tokens in 1usize..20, first in 0usize..1_000, seed in any::<u64>()) {
        let (source, plan) = source();
        let mut block = source.block(first, tokens, seed);
        block.keys[0] = bf16::NAN;
        block.values[1] = bf16::NEG_INFINITY;
        let bytes = source.raw_encoder(first + tokens).encode(&block).unwrap();
        let back = source.decoder(plan).decode(&bytes).unwrap();
        let bits = |cache: &[bf16]| cache.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&back.keys), bits(&block.keys));
        prop_assert_eq!(bits(&back.values), bits(&block.values));
        prop_assert_eq!((back.first_token, back.tokens), (first, tokens));
    }

    #[test]
    fn lossless_is_exact_for_real_rows_and_for_any_bits(
        tokens in 1usize..200, seed in any::<u64>(), noise in prop::collection::vec(any::<(u16, u16)>(), 0..40)
    ) {
        let (source, plan) = source();
        let mut block = source.block(0, tokens, seed);
        for &(at, bits) in &noise {
            let at = usize::from(at) % block.keys.len();
            block.keys[at] = bf16::from_bits(bits);
        }
        let bytes = source.plain_encoder(CodecKind::Lossless, tokens).encode(&block).unwrap();
        let back = source.decoder(plan).decode(&bytes).unwrap();
        prop_assert!(same_bits(&back, &block));
        prop_assert!(bytes.len() <= tokens * source.layout.bytes_per_token() + 96 + 16 + 4 * 16 + 4 * 10 * 2);
    }

    #[test]
    fn fp8_is_close_and_exact_for_sinks(
        tokens in 1usize..200, first in 0usize..8, seed in any::<u64>(), scale in -100i32..100
    ) {
        let (source, plan) = source();
        let mut block = source.block(first, tokens, seed);
        let scale = 2f32.powi(scale);
        for x in block.keys.iter_mut().chain(&mut block.values) {
            *x = bf16::from_f32(x.to_f32() * scale);
        }
        let bytes = source.plain_encoder(CodecKind::Fp8, first + tokens).encode(&block).unwrap();
        let back = source.decoder(plan).decode(&bytes).unwrap();
        let sinks = 4usize.saturating_sub(first).min(tokens);
        prop_assert!(same_bits(&cut(&back, 0..sinks, 8), &cut(&block, 0..sinks, 8)));
        for (x, back) in block.keys.iter().chain(&block.values).zip(back.keys.iter().chain(&back.values)) {
            let (x, back) = (x.to_f32(), back.to_f32());
            // Half of one eighth of an octave; far below its plane's largest, a value is near 0 instead.
            prop_assert!((x - back).abs() <= (x.abs() / 16.0).max(scale * 0.01), "{x} came back as {back}");
        }
    }

    #[test]
    fn any_chunking_decodes_to_the_same_cache(
        prompt in 1usize..300, cuts in prop::collection::vec(0usize..300, 0..4), tier in 4u8..=128, seed in 0u64..8
    ) {
        let (source, plan) = source();
        let (encoder, decoder) = (source.encoder(plan, tier, prompt), source.decoder(plan));
        let block = source.block(0, prompt, seed);
        let whole = decoder.decode(&encoder.encode(&block).unwrap()).unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at % prompt).chain([0, prompt]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let part = encoder.encode(&cut(&block, pair[0]..pair[1], 8)).unwrap();
            prop_assert_eq!(decoder.decode(&part).unwrap(), cut(&whole, pair[0]..pair[1], 8));
        }
    }

    #[test]
    fn any_shifts_decode_and_finer_ones_are_closer(seed in 0u64..8, shifts in prop::collection::vec(-24i8..=24, 400)) {
        let (source, plan) = source();
        let (encoder, decoder) = (source.encoder(plan, 16, 400), source.decoder(plan));
        let block = source.block(0, 400, seed);
        let mixed = decoder.decode(&encoder.encode_with_shifts(&block, Some(&shifts)).unwrap()).unwrap();
        prop_assert_eq!(mixed.tokens, 400);
        let error = |shift: i8| {
            let bytes = encoder.encode_with_shifts(&block, Some(&[shift; 400])).unwrap();
            relative_error(&source.layout, source, &decoder.decode(&bytes).unwrap(), &block).0
        };
        prop_assert!(error(-6) < error(0) && error(0) < error(6));
    }
}

#[test]
fn equal_shifts_of_zero_change_nothing_in_the_body() {
    let (source, plan) = source();
    let encoder = source.encoder(plan, 16, 400);
    let block = cut(&source.block(0, 400, 3), 4..272, 8);
    let plain = encoder.encode(&block).unwrap();
    let shifted = encoder.encode_with_shifts(&block, Some(&[0; 268])).unwrap();
    assert!(shifted.len() > plain.len() && shifted.len() < plain.len() + 80);
    let decoder = source.decoder(plan);
    assert_eq!(decoder.decode(&shifted).unwrap(), decoder.decode(&plain).unwrap());
}

#[test]
fn sinks_are_exact_and_the_window_is_closer_than_the_body() {
    let (source, plan) = source();
    let block = source.block(0, 600, 5);
    let bytes = source.encoder(plan, 64, 600).encode(&block).unwrap();
    let back = source.decoder(plan).decode(&bytes).unwrap();
    assert_eq!(cut(&back, 0..4, 8), cut(&block, 0..4, 8));
    let error = |range: std::ops::Range<usize>| {
        relative_error(&source.layout, source, &cut(&back, range.clone(), 8), &cut(&block, range, 8))
    };
    let (body, window) = (error(4..472), error(472..600));
    assert!(window.0 < body.0 / 4.0 && window.1 < body.1 / 4.0, "window {window:?}, body {body:?}");
}

#[test]
fn the_same_block_gives_the_same_bytes_on_any_number_of_threads() {
    let (source, plan) = source();
    let block = source.block(0, 700, 6);
    let encode = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| source.encoder(plan, 12, 700).encode(&block).unwrap())
    };
    let first = encode(1);
    assert!((2..5).all(|threads| encode(threads) == first));
}

#[test]
fn weights_move_the_error_to_features_that_do_not_matter() {
    let source = Source::new(small_layout(), 32, 2);
    let weights: Vec<f32> = (0..32).map(|i| if i < 16 { 4.0 } else { 0.25 }).collect();
    let block = source.block(0, 800, 7);
    let error_of_important = |plan| {
        let bytes = source.encoder(&plan, 8, 800).encode(&block).unwrap();
        let back = source.decoder(&plan).decode(&bytes).unwrap();
        let half = block.values.len() / 2;
        let error = |a: &[bf16], b: &[bf16]| -> f32 {
            a.iter().zip(b).map(|(a, b)| (a.to_f32() - b.to_f32()).powi(2)).sum()
        };
        error(&back.values[..half], &block.values[..half])
    };
    let plain = error_of_important(source.plan(None, Balance::EqualBytes));
    let weighted = error_of_important(source.plan(Some(weights), Balance::OneStep));
    assert!(weighted < plain * 0.7, "weighted {weighted}, plain {plain}");
}

#[test]
fn a_tier_reaches_its_ratio_on_rows_it_was_not_fitted_to() {
    let source = Source::new(common::layout(2, 2, 32), 100, 4);
    let plan = source.plan(None, Balance::EqualBytes);
    let prompt = 4_000;
    let body = cut(&source.block(0, prompt, 9), 4..prompt - 128, 32);
    let raw = body.tokens * source.layout.bytes_per_token();
    for tier in [6, 8, 14, 32] {
        let bytes = source.encoder(&plan, tier, prompt).encode(&body).unwrap();
        let ratio = raw as f64 / bytes.len() as f64;
        assert!((ratio / f64::from(tier) - 1.0).abs() < 0.15, "tier {tier} gave {ratio}");
    }
}

#[test]
fn codecs_without_a_plan_are_smaller_than_raw_and_the_same_every_time() {
    let (source, _) = source();
    let block = source.block(0, 2_000, 5);
    let raw = 2_000 * source.layout.bytes_per_token();
    for (kind, least) in [(CodecKind::Lossless, 1.4), (CodecKind::Fp8, 2.2)] {
        let encoder = source.plain_encoder(kind, 2_000);
        let bytes = encoder.encode(&block).unwrap();
        assert_eq!(bytes, encoder.encode(&block).unwrap());
        let ratio = raw as f64 / bytes.len() as f64;
        assert!(ratio > least, "{kind} reaches {ratio}");
    }
}

#[test]
fn rows_that_come_again_are_stored_once() {
    let (source, plan) = source();
    let mut block = source.block(0, 1_024, 5);
    for plane in block.values.chunks_exact_mut(1_024 * 8) {
        let (first, rest) = plane.split_at_mut(128 * 8);
        rest.chunks_exact_mut(128 * 8).for_each(|copy| copy.copy_from_slice(first));
    }
    for kind in [CodecKind::Lossless, CodecKind::Fp8] {
        let encoder = source.plain_encoder(kind, 1_024);
        let (copies, fresh) =
            (encoder.encode(&block).unwrap(), encoder.encode(&source.block(0, 1_024, 5)).unwrap());
        assert!(copies.len() * 3 < fresh.len() * 2, "{kind}: {} against {}", copies.len(), fresh.len());
        assert_eq!(source.decoder(plan).decode(&copies).unwrap().tokens, 1_024);
    }
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let (source, plan) = source();
    let encoder = source.encoder(plan, 16, 10);
    let mut block = source.block(0, 8, 1);
    let refuse = |block: &KvBlock, shifts: Option<&[i8]>| {
        encoder.encode_with_shifts(block, shifts).unwrap_err().to_string()
    };
    assert!(refuse(&block, Some(&[0; 7])).contains("7 shifts"));
    assert!(refuse(&block, Some(&[25; 8])).contains("shift 25 is outside -24 to 24"));
    assert!(refuse(&source.block(3, 8, 1), None).contains("8 tokens from 3 in a prompt of 10"));
    block.keys[6 * 8] = bf16::INFINITY;
    assert!(refuse(&block, None).contains("not finite"));
    let fp8 = source.plain_encoder(CodecKind::Fp8, 10).encode(&block).unwrap_err();
    assert_eq!(
        fp8.to_string(),
        "invalid argument: token 6 of the block has a cache entry that is not finite"
    );
    block.keys.pop();
    assert!(refuse(&block, None).contains("255 key"));
    let tier = Coding { kind: codec::CodecKind::Kvtc, tier: 3 };
    let refused = codec::Encoder::new(source.layout.clone(), common::MODEL, Some(plan.clone()), tier, 10);
    assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    let refused =
        codec::Encoder::new(source.layout.clone(), common::MODEL, None, Coding { tier: 8, ..tier }, 10);
    assert!(matches!(refused, Err(Error::PlanMissing { .. })));
}
