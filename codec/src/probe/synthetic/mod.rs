//! A plan and caches of any shape without a model: for benchmarks at a real model's size, where calibrating would take its weights and hours.
//!
//! What decides a codec's work and its bytes is taken from a plan that was measured (the embedded model's will do): standard deviations,
//! class tables, steps by tier, weights, layer weights, each stretched to the new number of features. What does not matter is made up:
//! the basis is a randomised Walsh-Hadamard transform, orthonormal, dense and quick; the predictor is random. Steps stay as they were
//! measured, for features keep their bits however many there are: bodies drawn here are coded to within 15 % of the ratio that a tier
//! is named after, which a test holds them to, and [`shifts`] are like a real prompt's.
//!
//! At the size of Llama 3.2 1B (8,192 features, predicted from 2 x 2,048) the plan has 7,872 and 8,181 components, of which tier 32 keeps
//! 1,803 and 2,742, and takes 4 s and 0.8 GB; 4,096 tokens of it take 8 s more, on two cores. Coded whole at tier 32 they come to 27.8x
//! (the window's finer step costs the difference), with shifts to 36.1x.
//!
//! Not a stand-in for quality: nothing here says what an error does to a model.

mod attention;
mod known;
mod mixing;
mod plan;
mod random;

use std::{ops::Range, sync::Arc};

use half::bf16;
use rayon::prelude::*;

pub use attention::shifts;
pub use known::HashedFeatures;

use crate::{
    error::{Error, Result},
    fit,
    layout::{KvBlock, KvLayout},
    plan::{Plan, space::Space},
    predict::{Prediction, TokenFeatures, Tokens},
    probe::synthetic::{mixing::Mixing, random::Random},
    stages::quantize::step_size,
    tokens::Side,
};

/// A model that does not exist: its plan, and caches as it would fill them.
#[derive(Debug, Clone)]
pub struct Synthetic {
    plan: Arc<Plan>,
    features: Option<Arc<dyn TokenFeatures>>,
    /// Of keys and of values: what the bases in the plan are rows of, before rounding.
    mixings: [Mixing; 2],
}

impl Synthetic {
    /// A plan for `layout` with the spectrum of `measured`. With a predictor (tokens it looks at, 1 to 4, and what is known of a token) rows are
    /// predicted from token ids, and a bit more than half of their variance is. Equal arguments give the same plan, bit for bit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad layout or predictor.
    pub fn new(
        layout: &KvLayout,
        model_fingerprint: [u8; 16],
        measured: &Plan,
        predictor: Option<(usize, Arc<dyn TokenFeatures>)>,
        seed: u64,
    ) -> Result<Self> {
        layout.validate()?;
        let mixings = [2, 3].map(|stream| Mixing::new(layout.features(), &mut Random::new(seed, stream)));
        let of = predictor.as_ref().map(|(context, features)| (*context, features.as_ref()));
        let plan = Arc::new(plan::stretched(layout, model_fingerprint, measured, (&mixings, of), seed)?);
        Ok(Self { plan, features: predictor.map(|(_, features)| features), mixings })
    }

    /// As [`Self::new`], for a model whose rows are linear in its tokens' features, of which the plan predicts a part from the row's own
    /// token: no mean, no first row. [`Self::projection`] is the model.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn linear(
        layout: &KvLayout,
        model_fingerprint: [u8; 16],
        measured: &Plan,
        features: Arc<dyn TokenFeatures>,
        seed: u64,
    ) -> Result<Self> {
        let made = Self::new(layout, model_fingerprint, measured, Some((1, features)), seed)?;
        let mut profile = made.plan.kvtc().clone();
        for space in [&mut profile.keys, &mut profile.values] {
            space.mean.fill(0.0);
        }
        profile.first = None;
        let plan = Arc::new(Plan::new(model_fingerprint, layout.clone(), profile));
        Ok(Self { plan, ..made })
    }

    /// Weights `[P, features]` of [`Self::linear`]'s model, of keys and of values: times a token's features, of mean 0 and variance 1 each,
    /// they are its row. What the plan predicts of it is the plan's own map; of the rest, feature j is coefficient j, as far as there are
    /// features.
    ///
    /// # Panics
    /// Without a predictor of one token.
    #[must_use]
    pub fn projection(&self) -> [Vec<f32>; 2] {
        let profile = self.plan.kvtc();
        let predictor = profile.predictor.as_ref().expect("a linear model has a predictor; this is a bug");
        assert_eq!(predictor.context, 1, "a linear model's rows follow from their own tokens; this is a bug");
        [Side::Keys, Side::Values].map(|side| {
            let (space, inputs) = (profile.space(side), predictor.inputs());
            let (features, sigmas) = (space.mean.len(), sigmas(space));
            let mut matrix = predictor.weights(side).matrix.clone();
            let components = space.log_sigma.len().min(inputs);
            matrix.par_chunks_exact_mut(inputs).enumerate().for_each(|(feature, row)| {
                let inverse = space.inverse_weights.as_ref().map_or(1.0, |inverse| inverse[feature]);
                for (j, x) in row.iter_mut().take(components).enumerate() {
                    *x += sigmas[j] * space.basis.values[j * features + feature] * inverse;
                }
            });
            matrix
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// What is known of a token by its id, where the plan has a predictor.
    #[must_use]
    pub fn features(&self) -> Option<&Arc<dyn TokenFeatures>> {
        self.features.as_ref()
    }

    /// Ids of a prompt: some 40 % of 2,048 are different, as in a text, and the first is the one whose row the plan holds. All 0 without a predictor.
    #[must_use]
    pub fn ids(&self, tokens: usize, seed: u64) -> Vec<u32> {
        let vocabulary = self.features.as_ref().map_or(1, |features| features.vocabulary());
        let first = self.plan.kvtc().first.as_ref().map(|first| first.token);
        known::ids(tokens, vocabulary, first, &mut Random::new(seed, 1))
    }

    /// The cache of tokens `first_token..first_token + tokens` of the prompt with `ids`, which begin at its start (a plan without a predictor
    /// does not look at them). `seed` is the prompt's: pieces of one prompt fit together however it is cut.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for missing ids, [`Error::Corrupt`] for one outside of the vocabulary.
    pub fn block(&self, first_token: usize, tokens: usize, ids: &[u32], seed: u64) -> Result<KvBlock> {
        let positions = first_token..first_token + tokens;
        let mut rows = [Side::Keys, Side::Values].map(|side| self.residuals(side, positions.clone(), seed));
        self.add_predictions(&mut rows, (first_token, tokens), ids)?;
        let [keys, values] = rows;
        let mut block = fit::block(first_token, (keys, values), self.plan.layout())?;
        self.put_first_row(&mut block, ids);
        Ok(block)
    }

    /// Rows `[tokens, P]` less what the predictor adds.
    fn residuals(&self, side: Side, positions: Range<usize>, seed: u64) -> Vec<f32> {
        let (space, mixing) = (self.plan.kvtc().space(side), &self.mixings[side as usize]);
        let features = space.mean.len();
        let sigmas = sigmas(space);
        let mut rows = vec![0.0; positions.len() * features];
        rows.par_chunks_exact_mut(features).zip(positions).for_each(|(row, position)| {
            let mut random = Random::new(seed, 16 + 2 * position as u64 + side as u64);
            draw(&sigmas, &mut random, row);
            mixing.apply(row);
            if let Some(inverse) = &space.inverse_weights {
                row.iter_mut().zip(inverse).for_each(|(x, inverse)| *x *= inverse);
            }
            row.iter_mut().zip(&space.mean).for_each(|(x, mean)| *x += mean);
        });
        rows
    }

    fn add_predictions(
        &self,
        rows: &mut [Vec<f32>; 2],
        (first_token, tokens): (usize, usize),
        ids: &[u32],
    ) -> Result<()> {
        let (Some(predictor), Some(features)) = (&self.plan.kvtc().predictor, &self.features) else {
            return Ok(());
        };
        let (start, end) = ((first_token + 1).saturating_sub(predictor.context), first_token + tokens);
        let ids = ids.get(start..end).ok_or_else(|| {
            Error::InvalidArgument(format!("{} token ids for a block that ends at token {end}", ids.len()))
        })?;
        let tokens = Tokens::of(predictor, features.as_ref(), ids, first_token - start)?;
        for (side, rows) in [Side::Keys, Side::Values].into_iter().zip(rows) {
            let prediction = Prediction::of(predictor, side, &tokens);
            let rows = rows.par_chunks_exact_mut(self.plan.layout().features()).enumerate();
            rows.for_each(|(token, row)| prediction.restore(token, row));
        }
        Ok(())
    }

    /// At position 0 nothing but the token decides its row.
    fn put_first_row(&self, block: &mut KvBlock, ids: &[u32]) {
        let Some(first) = &self.plan.kvtc().first else { return };
        if block.first_token > 0 || block.tokens == 0 || ids.first() != Some(&first.token) {
            return;
        }
        let head_dim = self.plan.layout().head_dim;
        for (cache, row) in [(&mut block.keys, &first.keys), (&mut block.values, &first.values)] {
            let planes = cache.chunks_exact_mut(block.tokens * head_dim);
            planes.zip(row.chunks_exact(head_dim)).for_each(|(plane, row): (&mut [bf16], &[bf16])| {
                plane[..head_dim].copy_from_slice(row);
            });
        }
    }
}

/// Standard deviations along all P directions: what the basis leaves out has 0.7 of the last component's.
fn sigmas(space: &Space) -> Vec<f32> {
    let step = |&log: &i16| step_size(log.into());
    let mut sigmas: Vec<f32> = space.log_sigma.iter().map(step).collect();
    let rest = 0.7 * sigmas.last().copied().unwrap_or(0.0);
    sigmas.resize(space.mean.len(), rest);
    sigmas
}

/// One token's coefficients. Strong components are Gaussian, weak ones Laplacian, those between a mixture of variances between the two.
fn draw(sigmas: &[f32], random: &mut Random, out: &mut [f32]) {
    let count = sigmas.len() as f32;
    for (j, (x, sigma)) in out.iter_mut().zip(sigmas).enumerate() {
        // A Gaussian whose variance is exponential is a Laplacian.
        let share = j as f32 / count;
        let variance = 1.0 - share + share * random.exponential();
        *x = sigma * variance.sqrt() * random.gauss();
    }
}
