//! The predictor while a plan is made: what a regression found, rounded as a plan stores it.

use crate::{
    error::{Error, Result},
    plan::predictor::{MAX_CONTEXT, Predictor as Stored, Weights},
    predict::{Prediction, TokenFeatures, Tokens},
    tokens::Side,
};

/// A linear map from the features of a token and of those before it to its rows of keys and values, already rounded: covariances and
/// coefficients must be those of what is left after *this* map.
#[derive(Debug, Clone)]
pub struct Predictor {
    pub(crate) stored: Stored,
}

impl Predictor {
    /// `keys` and `values` are `[P, context x token features]`, the features of a row's own token first, then those of the one before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a context outside 1 to 4, maps of another size, numbers that are not finite or a vocabulary
    /// above 2^24.
    pub fn new(context: usize, source: &dyn TokenFeatures, keys: Vec<f32>, values: Vec<f32>) -> Result<Self> {
        let (inputs, vocabulary) = (context * source.features(), source.vocabulary());
        let is_sane = (1..=MAX_CONTEXT).contains(&context)
            && inputs > 0
            && keys.len() == values.len()
            && keys.len().is_multiple_of(inputs)
            && keys.iter().chain(&values).all(|x| x.is_finite())
            && vocabulary <= 1 << 24;
        if !is_sane {
            return Err(Error::InvalidArgument(format!(
                "maps of {} and {} numbers from {inputs} features over {context} tokens, vocabulary of {vocabulary}",
                keys.len(),
                values.len()
            )));
        }
        let id_bytes = if vocabulary <= 1 << 16 { 2 } else { 3 };
        let (keys, values) = (Weights::round(keys, inputs), Weights::round(values, inputs));
        let token_features = source.features();
        Ok(Self { stored: Stored { context, token_features, id_bytes, keys, values } })
    }

    /// The maps of keys and of values as a decoder will have them, `[P, context x token features]`.
    pub fn maps(&self) -> (&[f32], &[f32]) {
        (&self.stored.keys.matrix, &self.stored.values.matrix)
    }

    /// Takes predictions off rows `[n, P]` of keys and of values of n consecutive tokens, whose ids follow those of the `lead` tokens before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sizes that do not fit, [`Error::Corrupt`] for an id outside of the vocabulary.
    pub fn remove(
        &self,
        source: &dyn TokenFeatures,
        (ids, lead): (&[u32], usize),
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        let features = self.stored.keys.matrix.len() / self.stored.inputs();
        let rows = ids.len().saturating_sub(lead);
        if keys.len() != rows * features || values.len() != rows * features {
            return Err(Error::InvalidArgument(format!(
                "{} and {} numbers for {rows} rows",
                keys.len(),
                values.len()
            )));
        }
        let tokens = Tokens::of(&self.stored, source, ids, lead)?;
        for (side, rows) in [(Side::Keys, keys), (Side::Values, values)] {
            let prediction = Prediction::of(&self.stored, side, &tokens);
            for (token, row) in rows.chunks_exact_mut(features).enumerate() {
                prediction.remove(token, row);
            }
        }
        Ok(())
    }
}

/// What a prediction is made from, `[n, context x token features]` for n consecutive tokens whose ids follow those of the `lead` tokens
/// before; zeros where there is no token before.
pub fn inputs(source: &dyn TokenFeatures, context: usize, ids: &[u32], lead: usize) -> Vec<f32> {
    let width = source.features();
    let mut out = vec![0.0; ids.len().saturating_sub(lead) * context * width];
    for (row, inputs) in out.chunks_exact_mut((context * width).max(1)).enumerate() {
        for (back, features) in inputs.chunks_exact_mut(width.max(1)).enumerate() {
            if let Some(at) = (row + lead).checked_sub(back) {
                source.write(ids[at], features);
            }
        }
    }
    out
}
