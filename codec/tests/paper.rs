//! kvtc-paper: what goes in comes out within its quantizer's bounds, in the bits that its plan has, or is refused with a reason.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, OnceLock};

use codec::{
    CodecKind, Coding, Encoder, Error, GroupType, KvBlock, PAPER_TIERS, Plan,
    fit::{self, Balance, Basis},
};
use common::{MODEL, Predictable, Source, cut, layout, relative_error, same_bits};
use half::bf16;
use proptest::prelude::*;

const KINDS: [CodecKind; 2] = [CodecKind::KvtcPaper, CodecKind::KvtcPaperCodedWindow];

fn source() -> &'static (Source, Arc<Plan>) {
    static SOURCE: OnceLock<(Source, Arc<Plan>)> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let source = Source { decay: 1.0, ..Source::new(layout(2, 4, 32), 100, 41) };
        let plan = source.paper_plan();
        (source, plan)
    })
}

fn round_trip(kind: CodecKind, tier: u8, block: &KvBlock, prompt: usize) -> KvBlock {
    let (source, plan) = source();
    let bytes = source.planned_encoder(plan, kind, tier, prompt).encode(block).unwrap();
    source.decoder(plan).decode(&bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_chunking_decodes_to_the_same_cache(
        prompt in 1usize..300, cuts in prop::collection::vec(0usize..300, 0..4), tier in 0usize..4, kind in 0usize..2,
        seed in 0u64..8
    ) {
        let (kind, tier) = (KINDS[kind], PAPER_TIERS[tier]);
        let block = source().0.block(0, prompt, seed);
        let whole = round_trip(kind, tier, &block, prompt);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at % prompt).chain([0, prompt]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let part = round_trip(kind, tier, &cut(&block, pair[0]..pair[1], 32), prompt);
            prop_assert_eq!(part, cut(&whole, pair[0]..pair[1], 32));
        }
    }

    #[test]
    fn caches_of_any_scale_come_back_finite(scale in -120i32..=120, tier in 0usize..4, seed in 0u64..8) {
        let mut block = source().0.block(0, 150, seed);
        for x in block.keys.iter_mut().chain(&mut block.values) {
            let scaled = f64::from(x.to_f32()) * 2f64.powi(scale);
            *x = bf16::from_f32((scaled as f32).clamp(-1e38, 1e38));
        }
        for kind in KINDS {
            let back = round_trip(kind, PAPER_TIERS[tier], &block, 150);
            prop_assert!(back.keys.iter().chain(&back.values).all(|x| x.is_finite()));
        }
    }

    #[test]
    fn any_payload_is_a_finite_cache_or_an_error(seed in any::<u64>(), is_tame in any::<bool>()) {
        let (source, plan) = source();
        let block = source.block(10, 40, 3);
        let chunk = source.planned_encoder(plan, CodecKind::KvtcPaper, 8, 400).encode(&block).unwrap();
        let payload = u64::from_le_bytes(chunk[84..92].try_into().unwrap()) as usize;
        // One segment that is stored. Tame bytes have no code or number that must be refused.
        let mut hostile = chunk[..96].to_vec();
        hostile.extend((payload as u32).to_le_bytes());
        let mut state = seed | 1;
        hostile.extend((0..payload).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let byte = (state >> 56) as u8;
            if is_tame { byte & 0x7b } else { byte }
        }));
        let digest = blake3::hash(&hostile);
        hostile.extend_from_slice(&digest.as_bytes()[..16]);
        match source.decoder(plan).decode(&hostile) {
            Ok(back) => prop_assert!(back.keys.iter().chain(&back.values).all(|x| x.is_finite())),
            Err(error) => prop_assert!(!is_tame && matches!(error, Error::Corrupt { .. }), "{}", error),
        }
    }
}

#[test]
fn sinks_are_close_and_the_window_is_raw_or_what_kvtc_makes_of_it() {
    let (source, plan) = source();
    let block = source.block(0, 400, 5);
    for tier in PAPER_TIERS {
        let [raw, coded] = KINDS.map(|kind| round_trip(kind, tier, &block, 400));
        assert!(same_bits(&cut(&raw, 272..400, 32), &cut(&block, 272..400, 32)));
        assert!(same_bits(&cut(&raw, 0..272, 32), &cut(&coded, 0..272, 32)));
        let kvtc = source.encoder(plan, tier, 400).encode(&block).unwrap();
        let kvtc = source.decoder(plan).decode(&kvtc).unwrap();
        assert!(same_bits(&cut(&coded, 272..400, 32), &cut(&kvtc, 272..400, 32)));
        let sinks = relative_error(&source.layout, source, &cut(&raw, 0..4, 32), &cut(&block, 0..4, 32));
        assert!(sinks.0.max(sinks.1) < 5e-3, "{sinks:?}");
    }
}

/// Where the plan predicts rows from token ids, the coded window is predicted as kvtc's is, and nothing else is.
#[test]
fn a_coded_window_is_predicted_where_the_plan_predicts() {
    let kit = Predictable::new();
    let plan = kit.source.with_paper(&kit.plan);
    let (ids, block) = kit.prompt(300, 8);
    let bare = |kind| kit.source.planned_encoder(&plan, kind, 8, 300);
    let told = |kind| bare(kind).predicting(kit.features.clone(), Arc::from(ids.as_slice())).unwrap();
    let decoder = kit.source.decoder(&plan).predicting(kit.features.clone());
    let whole = decoder.decode(&told(KINDS[1]).encode(&block).unwrap()).unwrap();
    let kvtc = decoder.decode(&told(CodecKind::Kvtc).encode(&block).unwrap()).unwrap();
    assert!(same_bits(&cut(&whole, 172..300, 8), &cut(&kvtc, 172..300, 8)));
    for at in [1, 4, 100, 172, 173, 299] {
        for range in [0..at, at..300] {
            let part = told(KINDS[1]).encode(&cut(&block, range.clone(), 8)).unwrap();
            assert_eq!(decoder.decode(&part).unwrap(), cut(&whole, range, 8));
        }
    }
    assert!(matches!(bare(KINDS[1]).encode(&block), Err(Error::FeaturesMissing)));
    let coded = told(KINDS[1]).encode(&block).unwrap();
    assert!(matches!(kit.source.decoder(&plan).decode(&coded), Err(Error::FeaturesMissing)));
    let raw = kit.source.decoder(&plan).decode(&bare(KINDS[0]).encode(&block).unwrap()).unwrap();
    assert!(same_bits(&cut(&raw, 0..172, 8), &cut(&whole, 0..172, 8)));
}

#[test]
fn finer_tiers_are_closer_and_all_keep_their_budget() {
    let (source, plan) = source();
    let features = source.layout.features();
    let block = source.block(4, 1_000, 6);
    let mut last = 0.0;
    for tier in PAPER_TIERS {
        let (keys, values) = plan.paper_allocation(tier).unwrap();
        for groups in [keys, values] {
            let bits: usize = groups.iter().map(codec::BitGroup::bits).sum();
            assert!(bits <= 16 * features / usize::from(tier), "{bits} bits at tier {tier}");
            assert!(groups.windows(2).all(|pair| pair[0].first + pair[0].size == pair[1].first));
        }
        let bytes = source.planned_encoder(plan, CodecKind::KvtcPaper, tier, 1_200).encode(&block).unwrap();
        let raw = block.tokens * source.layout.bytes_per_token();
        assert!(bytes.len() <= raw / usize::from(tier) + 400, "{} bytes at tier {tier}", bytes.len());
        let back = source.decoder(plan).decode(&bytes).unwrap();
        let error = relative_error(&source.layout, source, &back, &block);
        assert!(error.0.max(error.1) < 0.8 && error.0 > last, "{error:?} at tier {tier}");
        last = error.0;
    }
}

/// The error that the bit plan was chosen for is the one that the codec makes, here computed from the public tables alone.
#[test]
fn the_public_tables_say_what_the_codec_does() {
    let (source, plan) = source();
    let block = source.block(4, 300, 7);
    let back = round_trip(CodecKind::KvtcPaper, 8, &block, 600);
    let ((_, groups), (_, space)) = (plan.paper_allocation(8).unwrap(), plan.paper_spaces().unwrap());
    let (rows, back) =
        (fit::rows(&block, &source.layout).unwrap().1, fit::rows(&back, &source.layout).unwrap().1);
    let sigma: Vec<f32> = space.sigma().collect();
    assert_eq!(sigma.len() * space.mean.len(), space.basis.len());
    let last = groups.last().unwrap();
    assert!(last.first + last.size <= sigma.len() && sigma.is_sorted_by(|a, b| a >= b));
    let mut error = vec![0f64; sigma.len()];
    for (row, back) in rows.chunks_exact(256).zip(back.chunks_exact(256)) {
        for (j, vector) in space.basis.chunks_exact(256).enumerate() {
            let y: f32 = row.iter().zip(back).zip(vector).map(|((a, b), u)| (a - b) * u).sum();
            error[j] += f64::from(y * y) / 300.0;
        }
    }
    for group in groups {
        let components = group.first..group.first + group.size;
        let energy: f64 = sigma[components.clone()].iter().map(|&s| f64::from(s * s)).sum();
        let share = error[components].iter().sum::<f64>() / energy;
        let allowed = match group.kind {
            GroupType::Drop => 0.7..1.5,
            GroupType::Int2 => 1e-9..0.5,
            GroupType::Int4 => 1e-9..0.05,
            GroupType::Fp8 => 1e-9..0.01,
        };
        assert!(allowed.contains(&share), "{group:?}: {share} of its energy is lost");
    }
}

#[test]
fn the_same_block_gives_the_same_bytes_on_any_number_of_threads() {
    let (source, plan) = source();
    let block = source.block(0, 700, 6);
    for kind in KINDS {
        let encode = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| source.planned_encoder(plan, kind, 16, 700).encode(&block).unwrap())
        };
        let first = encode(1);
        assert!((2..5).all(|threads| encode(threads) == first));
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_outside_a_raw_window() {
    let (source, plan) = source();
    for (kind, token, is_fine) in
        [(KINDS[0], 2, false), (KINDS[0], 50, false), (KINDS[0], 250, true), (KINDS[1], 250, false)]
    {
        let mut block = source.block(0, 300, 1);
        block.values[token * 32] = bf16::NAN;
        let outcome = source.planned_encoder(plan, kind, 8, 300).encode(&block);
        match outcome {
            Ok(bytes) => {
                let back = source.decoder(plan).decode(&bytes).unwrap();
                assert!(is_fine && back.values[token * 32].is_nan(), "{kind} {token}");
            }
            Err(error) => {
                let expected = format!("token {token} of the block has a cache entry that is not finite");
                assert!(!is_fine && error.to_string().ends_with(&expected), "{error}");
            }
        }
    }
}

#[test]
fn other_tiers_and_plans_without_the_tables_are_refused_with_advice() {
    let (source, plan) = source();
    let old = source.plan(None, Balance::EqualBytes);
    assert!(plan.supports(CodecKind::KvtcPaper) && !old.supports(CodecKind::KvtcPaper));
    assert_ne!(old.id(), plan.id());
    assert_eq!((old.tiers(), old.components()), (plan.tiers(), plan.components()));
    let encoder = |kind, tier, plan: &Arc<Plan>| {
        Encoder::new(source.layout.clone(), MODEL, Some(plan.clone()), Coding { kind, tier }, 10)
    };
    for kind in KINDS {
        for tier in [0, 4, 12, 24, 128] {
            let error = encoder(kind, tier, plan).unwrap_err();
            let says_which = error.to_string().contains("8, 16, 32 and 64");
            assert!(matches!(error, Error::InvalidArgument(_)) && says_which, "{error}");
        }
        let error = encoder(kind, 16, &old).unwrap_err();
        assert!(matches!(error, Error::ProfileMissing { .. }), "{error}");
        assert!(
            error.to_string().contains(kind.name()) && error.to_string().contains("recalibrate"),
            "{error}"
        );
    }
    // A chunk that names the old plan, whose tables do not have what it needs.
    let mut chunk = encoder(KINDS[0], 16, plan).unwrap().encode(&source.block(0, 10, 1)).unwrap();
    chunk[24..40].copy_from_slice(&old.id().0);
    chunk.truncate(chunk.len() - 16);
    let digest = blake3::hash(&chunk);
    chunk.extend_from_slice(&digest.as_bytes()[..16]);
    let error = source.decoder(&old).decode(&chunk).unwrap_err();
    assert!(matches!(error, Error::ProfileMissing { codec: "kvtc-paper" }), "{error}");
}

#[test]
fn calibration_refuses_what_it_cannot_use_and_says_how_far_it_is() {
    let source = Source::new(common::small_layout(), 20, 43);
    let plan = source.plan(None, Balance::EqualBytes);
    let rows = vec![0.5; 32 * 300];
    let side = |basis: &Basis| (basis.clone(), rows.clone());
    let add = |keys, values| fit::add_paper(&plan, keys, values, &mut |_| {});
    let weighted = Basis { weights: Some(vec![1.0; 32]), ..source.keys.clone() };
    let error = add(side(&weighted), side(&source.values)).unwrap_err().to_string();
    assert!(error.contains("no weights"), "{error}");
    let error = add(side(&source.keys), (source.values.clone(), vec![0.5; 32])).unwrap_err().to_string();
    assert!(error.contains("256 rows of 32"), "{error}");
    let mut stages = Vec::new();
    let constant = fit::add_paper(&plan, side(&source.keys), side(&source.values), &mut |progress| {
        if progress.done == progress.total {
            stages.push(progress.stage);
        }
    });
    assert_eq!(stages.len(), 4, "{stages:?}");
    // Nothing varies, and still there is a plan that codes what there is.
    let again = fit::add_paper(&constant.unwrap(), side(&source.keys), side(&source.values), &mut |_| {});
    assert_eq!(Plan::from_bytes(&again.unwrap().to_bytes()).unwrap().layout(), plan.layout());
}
