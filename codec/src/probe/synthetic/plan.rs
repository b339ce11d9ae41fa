//! A measured plan stretched to another number of features.

use half::bf16;
use rayon::prelude::*;

use crate::{
    error::Result,
    fit::{Predictor, WIDE_SHARE},
    layout::KvLayout,
    plan::{
        KvtcProfile, Plan,
        elements::Rows,
        predictor::FirstRow,
        space::{Space, invert},
    },
    predict::TokenFeatures,
    probe::synthetic::{draw, mixing::Mixing, random::Random, sigmas},
};

/// Standard deviation of what a predictor says over that of what it leaves, of keys and of values, for the row's own token: measured
/// predictors of two tokens know 60 and 54 % of the variance.
const KNOWN: [f32; 2] = [1.15, 1.0];
/// What each further token back says, as a share of what the token after it does.
const FURTHER_BACK: f32 = 0.4;
/// Tokens that the size of features is measured on.
const MEASURED_TOKENS: usize = 64;

/// The plan, with rows of `mixings` for bases and, if asked for, a predictor.
pub(super) fn stretched(
    layout: &KvLayout,
    model: [u8; 16],
    measured: &Plan,
    (mixings, predictor): (&[Mixing; 2], Option<(usize, &dyn TokenFeatures)>),
    seed: u64,
) -> Result<Plan> {
    let (from, features) = (measured.kvtc(), layout.features());
    let space = |from: &Space, side: usize| {
        stretched_space(from, features, &mixings[side], &mut Random::new(seed, 4 + side as u64))
    };
    let (keys, values) = (space(&from.keys, 0), space(&from.values, 1));
    let vocabulary = predictor.map_or(usize::MAX, |(_, source)| source.vocabulary());
    let maps = predictor.map(|(context, source)| {
        let map = |space: &Space, side: usize| map(space, KNOWN[side], context, source, seed ^ side as u64);
        Predictor::new(context, source, map(&keys, 0), map(&values, 1))
    });
    let first = from.first.as_ref().map(|first| FirstRow {
        token: first.token.min(vocabulary.saturating_sub(1).min(u32::MAX as usize) as u32),
        keys: first_row(&keys, &mixings[0], &mut Random::new(seed, 6)),
        values: first_row(&values, &mixings[1], &mut Random::new(seed, 7)),
    });
    let profile = KvtcProfile {
        sinks: from.sinks,
        window_tier: from.window_tier,
        tiers: from.tiers.clone(),
        shifted_tiers: from.shifted_tiers.clone(),
        keys,
        values,
        predictor: maps.transpose()?.map(|predictor| predictor.stored),
        first,
        layer_weights: from.layer_weights.as_deref().map(|weights| stretched_layers(weights, layout.layers)),
    };
    Ok(Plan::new(model, layout.clone(), profile))
}

fn stretched_space(from: &Space, features: usize, mixing: &Mixing, random: &mut Random) -> Space {
    let components = from.log_sigma.len() * features / from.mean.len();
    let weights = from.weights.as_deref().map(|weights| stretch(weights, features));
    // A mean repeated over neighbours would be a pattern.
    let mut mean = stretch(&from.mean, features);
    mean.iter_mut().for_each(|x| *x = if random.next() & 1 == 0 { *x } else { -*x });
    Space {
        mean,
        inverse_weights: weights.as_deref().map(invert),
        weights,
        log_sigma: stretch(&from.log_sigma, components),
        basis: Rows::round(mixing.basis(components), features, features.div_ceil(WIDE_SHARE).min(components)),
        classes: from.classes.clone(),
    }
}

/// The list at `len` places, each with the entry that is as far down.
fn stretch<T: Copy>(list: &[T], len: usize) -> Vec<T> {
    (0..len).map(|i| list[i * list.len() / len]).collect()
}

/// Weights of so many layers, 1 on average.
fn stretched_layers(weights: &[f32], layers: usize) -> Vec<f32> {
    let weights = stretch(weights, layers);
    let mean = weights.iter().sum::<f32>() / layers as f32;
    if mean > 0.0 { weights.iter().map(|weight| weight / mean).collect() } else { weights }
}

/// A random map `[P, context x token features]` that adds `known` squared times the variance that each feature has.
fn map(space: &Space, known: f32, context: usize, source: &dyn TokenFeatures, seed: u64) -> Vec<f32> {
    let (features, width) = (space.mean.len(), source.features());
    let sigmas = sigmas(space);
    let deviation = (sigmas.iter().map(|sigma| sigma * sigma).sum::<f32>() / features as f32).sqrt();
    // Of uniform numbers between plus and minus 1.
    let rms = (1.0f32 / 3.0).sqrt() * (width as f32).sqrt() * size_of_features(source);
    let scale = if rms > 0.0 { known * deviation / rms } else { 0.0 };
    let mut map = vec![0.0; features * context * width];
    map.par_chunks_exact_mut((context * width).max(1)).enumerate().for_each(|(feature, row)| {
        let mut random = Random::new(seed, 8 + feature as u64);
        let mut scale = scale * space.inverse_weights.as_ref().map_or(1.0, |inverse| inverse[feature]);
        for part in row.chunks_exact_mut(width.max(1)) {
            part.iter_mut().for_each(|x| *x = scale * (2.0 * random.uniform() - 1.0));
            scale *= FURTHER_BACK;
        }
    });
    map
}

/// Root mean square of a token's features.
fn size_of_features(source: &dyn TokenFeatures) -> f32 {
    let mut features = vec![0.0; source.features()];
    let (vocabulary, mut sum) = (source.vocabulary(), 0.0);
    let step = vocabulary.div_ceil(MEASURED_TOKENS).max(1);
    let tokens = (0..vocabulary).step_by(step);
    let count = tokens.len() * features.len();
    for token in tokens {
        source.write(token as u32, &mut features);
        sum += features.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    (sum / count.max(1) as f64).sqrt() as f32
}

fn first_row(space: &Space, mixing: &Mixing, random: &mut Random) -> Vec<bf16> {
    let mut row = vec![0.0; space.mean.len()];
    draw(&sigmas(space), random, &mut row);
    mixing.apply(&mut row);
    let undone = |i: usize| space.inverse_weights.as_ref().map_or(1.0, |inverse| inverse[i]);
    row.iter()
        .zip(&space.mean)
        .enumerate()
        .map(|(i, (x, mean))| bf16::from_f32(x * undone(i) + mean))
        .collect()
}
