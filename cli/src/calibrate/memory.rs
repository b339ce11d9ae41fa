//! What a calibration holds in memory beside the model and the corpus's texts. All of it follows from shapes, so it is known before
//! the start.

use std::fmt;

use indicatif::BinaryBytes;
use model::Config;

use super::{fisher, held_out, moments};

/// Numbers are held as one of these, in bytes.
const F32: usize = 4;
const F64: usize = 8;
/// Copies of `[features, features]` in f64 while axes are found: what the predictor leaves, the solver's copy of it, eigenvectors, and
/// three of the solver's own.
const SQUARES: usize = 6;

/// Bytes, by what is held at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Inputs and features.
    pub(super) width: usize,
    /// Weights in f32 and one document's backward pass, before anything else is there.
    pub(super) gradients: usize,
    /// Two joint second moments, which stay to the end.
    pub(super) moments: usize,
    /// Rows that wait to be summed up, beside the moments.
    pub(super) running: usize,
    /// Working copies of the eigensolver and held-out rows, beside the moments.
    pub(super) axes: usize,
    /// Held-out rows and coefficients, beside the moments.
    pub(super) steps: usize,
}

impl Memory {
    /// For rows predicted from `context` tokens and documents of at most `longest` tokens.
    pub(super) fn of(config: &Config, context: usize, longest: usize) -> Self {
        let (features, inputs) = (config.kv_features(), context * config.hidden_size);
        let width = inputs + features;
        let (square, rows) = (features * features, (held_out::TOKENS + longest) * features);
        // Rows wait for both sides at once, next to a centred copy of one side's and one document's own.
        let running = 4 * F32 * (moments::BATCH_ROWS + longest) * width;
        // Removing the predictor's part takes copies of the maps, but fewer squares.
        let solving = (SQUARES * square).max(4 * square + 2 * inputs * features);
        Self {
            width,
            gradients: F32 * parameters(config) + fisher::document_bytes(config),
            moments: 2 * F64 * width * width,
            running,
            axes: F64 * solving + F32 * (square + 2 * rows),
            // Of each side either rows or coefficients, and of one of them rows, tiles and coefficients.
            steps: F32 * (4 * rows + 3 * square),
        }
    }

    /// The most that is held at any time.
    pub(super) fn most(&self) -> usize {
        self.gradients.max(self.moments + self.running.max(self.axes).max(self.steps))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: usize| BinaryBytes(bytes as u64);
        write!(
            f,
            "about {} at most beside the model and the texts, {} of it two joint second moments of {} x {} f64",
            bytes(self.most()),
            bytes(self.moments),
            self.width,
            self.width
        )
    }
}

fn parameters(config: &Config) -> usize {
    let heads = config.head_dim * (2 * config.heads + 2 * config.kv_heads);
    let block = config.hidden_size * (heads + 3 * config.intermediate_size + 2);
    let embeddings = if config.tie_word_embeddings { 1 } else { 2 } * config.vocab_size;
    config.layers * block + config.hidden_size * (embeddings + 1)
}

#[cfg(test)]
mod tests {
    use super::super::gradient::random_model;
    use super::*;

    #[test]
    fn the_shape_of_llama_3_2_1b_needs_what_the_guide_says() {
        let dir = tempfile::tempdir().unwrap();
        random_model::write(dir.path(), |_, _| {});
        let mut config = Config::load(dir.path()).unwrap();
        (config.layers, config.hidden_size, config.intermediate_size) = (16, 2048, 8192);
        (config.heads, config.kv_heads, config.head_dim) = (32, 8, 64);
        (config.vocab_size, config.tie_word_embeddings) = (128_256, true);
        config.max_position_embeddings = 131_072;
        assert_eq!(parameters(&config), 1_235_814_400);
        let memory = Memory::of(&config, 2, 4096);
        assert_eq!((memory.width, memory.moments), (12_288, 2 * 8 * 12_288 * 12_288));
        let said = memory.to_string();
        assert!(said.contains("6.75 GiB") && said.contains("2.25 GiB"), "{said}");
        assert!(Memory::of(&config, 0, 4096).most() < memory.most());
    }
}
