//! What a plan's making reports must be what coding really costs.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod common;

use codec::{
    CodecKind, TierSteps,
    fit::{ENTROPY_TIER, PlanBuilder, Report, TierCost, rows},
};
use common::{MODEL, Source, layout};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 2_048;

fn source() -> Source {
    Source::new(layout(2, 2, 16), 64, 5)
}

fn builder(source: &Source, weights: Option<Vec<f32>>, components: usize) -> PlanBuilder {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let [keys, values] = [&source.keys, &source.values].map(|basis| {
        let rows = source.rows(basis, ROWS, &mut rng);
        let mut basis = basis.clone();
        basis.weights = weights.clone();
        basis.vectors.truncate(components * source.layout.features());
        (basis, rows)
    });
    PlanBuilder::new(source.layout.clone(), MODEL, keys, values)
}

fn report(builder: PlanBuilder) -> Report {
    builder.build_with_report(&mut |_| {}).unwrap().1
}

fn at(costs: &[TierCost], tier: u8) -> TierCost {
    *costs.iter().find(|cost| cost.steps.tier == tier).unwrap()
}

#[test]
fn a_tier_costs_what_it_promises_and_errors_rise_with_tiers() {
    let report = report(builder(&source(), None, 64));
    assert_eq!((report.rows, report.raw_bytes), (ROWS, 2 * ROWS * 64 * 2));
    assert!(report.per_token.is_none());
    for cost in &report.uniform {
        let (ratio, tier) = (report.raw_bytes as f64 / cost.bytes() as f64, f64::from(cost.steps.tier));
        assert!((ratio / tier - 1.0).abs() < 0.03, "tier {tier} is {ratio}");
    }
    for (less, more) in report.uniform.iter().zip(&report.uniform[1..]) {
        assert!(less.keys.error < more.keys.error && less.values.error < more.values.error);
        assert!(less.keys.components >= more.keys.components);
    }
}

#[test]
fn plain_errors_are_those_of_decoded_rows_whatever_the_weights() {
    // Components that are features stay uncorrelated under any weights.
    let mut source = source();
    for basis in [&mut source.keys, &mut source.values] {
        basis.vectors = (0..64 * 64).map(|at| f32::from(u8::from(at / 64 == at % 64))).collect();
    }
    let weights: Vec<f32> = (0..64).map(|i| 0.5 + (i * 7 % 11) as f32 * 0.15).collect();
    let (plan, report) = builder(&source, Some(weights), 64).build_with_report(&mut |_| {}).unwrap();
    let plan = std::sync::Arc::new(plan);
    let block = source.block(0, ROWS, 9);
    for tier in [8, 32] {
        let chunk = source.planned_encoder(&plan, CodecKind::Kvtc, tier, ROWS).encode(&block).unwrap();
        let decoded = source.decoder(&plan).decode(&chunk).unwrap();
        let (exact, back) = (rows(&block, &source.layout).unwrap(), rows(&decoded, &source.layout).unwrap());
        let cost = at(&report.uniform, tier);
        for (exact, back, mean, error) in [
            (exact.0, back.0, &source.keys.mean, cost.keys.plain_error),
            (exact.1, back.1, &source.values.mean, cost.values.plain_error),
        ] {
            let body = 4 * 64..(ROWS - 128) * 64;
            let squared =
                |of: &dyn Fn(usize) -> f32| body.clone().map(|i| f64::from(of(i)).powi(2)).sum::<f64>();
            let measured = squared(&|i| exact[i] - back[i]) / squared(&|i| exact[i] - mean[i % 64]);
            assert!((measured / error - 1.0).abs() < 0.1, "tier {tier}: {measured}, reported {error}");
        }
    }
}

#[test]
fn without_weights_both_errors_agree_and_what_the_basis_lacks_counts() {
    let whole = at(&report(builder(&source(), None, 64)).uniform, 32);
    let half = at(&report(builder(&source(), None, 3)).uniform, 4);
    for cost in [whole.keys, whole.values, half.keys, half.values] {
        assert!((cost.error / cost.plain_error - 1.0).abs() < 0.02, "{cost:?}");
    }
    // The first 3 of 64 components with deviations 8, 8 / 2^0.6, 8 / 3^0.6.
    let energy = |ranks: std::ops::RangeInclusive<u8>| ranks.map(|j| f64::from(j).powf(-1.2)).sum::<f64>();
    let missing = 1.0 - energy(1..=3) / energy(1..=64);
    assert!((half.keys.error / missing - 1.0).abs() < 0.1, "{} instead of {missing}", half.keys.error);
}

#[test]
fn shifts_of_zero_cost_their_bytes_and_change_nothing_else() {
    let report = report(builder(&source(), None, 64).shifts(vec![0; ROWS]));
    let per_token = report.per_token.unwrap();
    let steps = |cost: &TierCost| TierSteps { ..cost.steps };
    let same: Vec<_> = report.uniform.iter().zip(&per_token).filter(|(a, b)| steps(a) == steps(b)).collect();
    assert!(!same.is_empty());
    for (uniform, shifted) in same {
        assert_eq!((uniform.keys, uniform.values), (shifted.keys, shifted.values));
        assert!(shifted.beside > uniform.beside);
    }
}

#[test]
fn shifts_up_and_down_code_fewer_and_more_components() {
    let shifts = (0..ROWS).map(|i| if i % 2 == 0 { -6 } else { 6 }).collect();
    let report = report(builder(&source(), None, 64).shifts(shifts));
    let cost = at(&report.per_token.unwrap(), 24);
    let (log, kept) = (cost.steps.keys, cost.keys.components);
    let sigma_above = |log: i32| {
        let least = (f64::from(log) / 48.0).exp2();
        report.keys.sigma.iter().filter(|sigma| f64::from(**sigma) > least).count() as f64
    };
    // Six shifts are two octaves, and components are coded down to a quarter of their step or, at the most, to just below it.
    let mean =
        |more: i32| (sigma_above(i32::from(log) - 96 - more) + sigma_above(i32::from(log) + 96 - more)) / 2.0;
    assert!((mean(0)..=mean(104)).contains(&kept), "{kept} is outside {} to {}", mean(0), mean(104));
    assert!((kept * 2.0).fract() == 0.0, "{kept} is no mean of two counts");
}

#[test]
fn entropy_is_close_to_what_symbols_cost_and_nothing_where_none_are() {
    let report = report(builder(&source(), None, 64));
    let cost = at(&report.uniform, ENTROPY_TIER);
    for (spectrum, side) in [(&report.keys, cost.keys), (&report.values, cost.values)] {
        assert!(spectrum.sigma.windows(2).all(|pair| pair[0] >= pair[1]));
        let bytes = spectrum.entropy.iter().map(|bits| f64::from(*bits)).sum::<f64>() * ROWS as f64 / 8.0;
        assert!((0.8..1.02).contains(&(bytes / side.bytes as f64)), "{bytes} of {}", side.bytes);
        let coded = spectrum.entropy.iter().filter(|bits| **bits > 0.0).count();
        assert_eq!(coded as f64, side.components);
    }
}
