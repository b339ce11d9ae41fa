//! What model and plan together know of a prompt's tokens: the codec predicts caches from it.

use std::sync::Arc;

use codec::TokenFeatures;
use model::Llama;

/// A model's tokens as the codec sees them.
#[derive(Debug, Clone)]
pub struct Vocabulary(pub Arc<Llama>);

impl TokenFeatures for Vocabulary {
    fn features(&self) -> usize {
        self.0.config().hidden_size
    }

    fn vocabulary(&self) -> usize {
        self.0.config().vocab_size
    }

    fn write(&self, token: u32, out: &mut [f32]) {
        self.0.token_features(token, out);
    }
}
