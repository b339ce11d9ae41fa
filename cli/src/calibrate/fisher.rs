//! Which entries of the cache the model cares about: the diagonal of the Fisher information, estimated as the mean
//! squared gradient of the model's own log-likelihood, labels drawn from its own prediction (the true Fisher
//! information, not the one of the text's labels; Kunstner et al., arXiv:1905.12558, section 2).

use anyhow::{Context, ensure};
use candle_core::{DType, Tensor};
use indicatif::ProgressBar;
use rand::{Rng, RngExt};

use super::collect::SINK_TOKENS;
use super::gradient::{CacheGradient, Gradient};

/// Longer documents are cut, in tokens.
const MAX_TOKENS: usize = 2048;
/// Memory for one document's backward pass.
const MEMORY_BYTES: usize = 2 << 30;

/// Mean squared gradient per feature; features in the order layer, head, dimension.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fisher {
    /// Of keys, RoPE undone, `[features]`.
    pub(super) keys: Vec<f64>,
    /// Of values, `[features]`.
    pub(super) values: Vec<f64>,
    /// Tokens that the mean is over.
    pub(super) tokens: usize,
}

/// Longest document that [`fisher`] uses, in tokens: what fits 2 GiB beside the weights in f32.
pub(super) fn document_tokens(config: &model::Config) -> usize {
    (MEMORY_BYTES / token_bytes(config)).min(config.max_position_embeddings).min(MAX_TOKENS)
}

/// Memory for the backward pass of the longest document.
pub(super) fn document_bytes(config: &model::Config) -> usize {
    document_tokens(config) * token_bytes(config)
}

/// A token needs the residual stream twice per layer, its cache's gradient and about twelve vectors as wide as the feed-forward layer.
fn token_bytes(config: &model::Config) -> usize {
    let residual = 2 * config.layers * config.hidden_size;
    4 * (residual + 2 * config.kv_features() + 12 * config.intermediate_size)
}

/// Estimates the diagonal over documents until `wanted` tokens were seen or the documents are used up. Longer documents
/// are cut to [`document_tokens`]. The sinks are left out because the codec sends them exact, the last token because no
/// later one reads its cache.
///
/// # Errors
/// When a document cannot be had, the model's prediction is not finite, or no document has a token that counts.
pub(super) fn fisher(
    gradient: &Gradient,
    documents: impl Iterator<Item = anyhow::Result<Vec<u32>>>,
    wanted: usize,
    rng: &mut impl Rng,
    progress: &ProgressBar,
) -> anyhow::Result<Fisher> {
    let features = gradient.config().kv_features();
    let mut sums = Fisher { keys: vec![0.0; features], values: vec![0.0; features], tokens: 0 };
    for tokens in documents {
        let mut tokens = tokens?;
        tokens.truncate(document_tokens(gradient.config()));
        let count = tokens.len().saturating_sub(SINK_TOKENS + 1);
        if count > 0 {
            let of_cache = gradient.of_cache(&tokens, &mut |prediction| draw(prediction, rng))?;
            sums.add(&of_cache, count)?;
            progress.inc(count as u64);
        }
        if sums.tokens >= wanted {
            break;
        }
    }
    sums.mean()
}

impl Fisher {
    fn add(&mut self, gradient: &CacheGradient, count: usize) -> anyhow::Result<()> {
        for (sums, layers) in [(&mut self.keys, &gradient.keys), (&mut self.values, &gradient.values)] {
            let of_layers = layers.iter().map(|layer| squares(layer, count));
            let of_layers = of_layers.collect::<anyhow::Result<Vec<_>>>()?.concat();
            sums.iter_mut().zip(of_layers).for_each(|(sum, squares)| *sum += squares);
        }
        self.tokens += count;
        Ok(())
    }

    fn mean(mut self) -> anyhow::Result<Self> {
        ensure!(
            self.tokens > 0,
            "no document has more than {} tokens, and fewer say nothing about what the model reads",
            SINK_TOKENS + 1
        );
        let tokens = self.tokens as f64;
        self.keys.iter_mut().chain(&mut self.values).for_each(|sum| *sum /= tokens);
        let finite = self.keys.iter().chain(&self.values).all(|x| x.is_finite());
        ensure!(finite, "the model's gradients are not finite; are its weights whole?");
        Ok(self)
    }
}

/// Sums over the `count` tokens after the sinks of the squares of `layer` `[tokens, kv_heads * head_dim]`.
fn squares(layer: &Tensor, count: usize) -> anyhow::Result<Vec<f64>> {
    let counted = layer.narrow(0, SINK_TOKENS, count)?.to_dtype(DType::F64)?;
    Ok(counted.sqr()?.sum(0)?.to_vec1()?)
}

/// A label with the probabilities of `prediction`.
fn draw(prediction: &[f64], rng: &mut impl Rng) -> anyhow::Result<u32> {
    let sum: f64 = prediction.iter().sum();
    ensure!(sum.is_finite(), "the model's prediction is not finite; are its weights whole?");
    let mut left = rng.random::<f64>() * sum;
    let drawn = prediction.iter().position(|p| {
        left -= p;
        left < 0.0
    });
    // Rounding may leave a little after the last label.
    let last = || prediction.iter().rposition(|p| *p > 0.0);
    let drawn = drawn.or_else(last).context("the model predicts nothing at all; are its weights whole?")?;
    Ok(u32::try_from(drawn)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::gradient::random_model::{self, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS};
    use super::*;

    const GROUP: usize = HEADS / KV_HEADS;

    fn of(edit: impl Fn(&str, &mut [f32]), documents: &[Vec<u32>], wanted: usize, seed: u64) -> Fisher {
        let dir = tempfile::tempdir().unwrap();
        random_model::write(dir.path(), edit);
        let gradient = Gradient::load(dir.path(), DType::F64, &Device::Cpu).unwrap();
        let documents = documents.iter().map(|tokens| Ok(tokens.clone()));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        fisher(&gradient, documents, wanted, &mut rng, &ProgressBar::hidden()).unwrap()
    }

    fn documents(lengths: &[usize]) -> Vec<Vec<u32>> {
        (1..).zip(lengths).map(|(seed, tokens)| random_model::document(*tokens, seed)).collect()
    }

    fn zeros(features: &[f64]) -> Vec<usize> {
        assert_eq!(features.len(), LAYERS * KV_HEADS * HEAD_DIM);
        (0..features.len()).filter(|feature| features[*feature] == 0.0).collect()
    }

    #[test]
    fn a_seed_decides_the_result() {
        let documents = documents(&[40, 30]);
        let first = of(|_, _| {}, &documents, 1000, 1);
        assert_eq!(first, of(|_, _| {}, &documents, 1000, 1));
        assert_ne!(first, of(|_, _| {}, &documents, 1000, 2));
    }

    #[test]
    fn tokens_count_without_sinks_and_the_last_until_there_are_enough() {
        let documents = documents(&[SINK_TOKENS + 1, 40, 30, 50]);
        assert_eq!(of(|_, _| {}, &documents, 1000, 1).tokens, 35 + 25 + 45);
        assert_eq!(of(|_, _| {}, &documents, 36, 1).tokens, 35 + 25);
    }

    #[test]
    fn no_document_long_enough_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        random_model::write(dir.path(), |_, _| {});
        let gradient = Gradient::load(dir.path(), DType::F32, &Device::Cpu).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let short = documents(&[SINK_TOKENS + 1]).into_iter().map(Ok);
        let error = fisher(&gradient, short, 10, &mut rng, &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("no document has more than 5 tokens"), "{error}");
    }

    #[test]
    fn a_value_that_the_output_layer_does_not_read_has_no_gradient() {
        let (layer, kv_head, dim) = (1, 1, 5);
        let blind = |name: &str, weights: &mut [f32]| {
            if name == "model.layers.1.self_attn.o_proj.weight" {
                assert_eq!(weights.len(), HIDDEN * HEADS * HEAD_DIM);
                for row in weights.chunks_exact_mut(HEADS * HEAD_DIM) {
                    (kv_head * GROUP..(kv_head + 1) * GROUP)
                        .for_each(|head| row[head * HEAD_DIM + dim] = 0.0);
                }
            }
        };
        let fisher = of(blind, &documents(&[40]), 1, 1);
        assert_eq!(zeros(&fisher.values), [(layer * KV_HEADS + kv_head) * HEAD_DIM + dim]);
        assert!(zeros(&fisher.keys).is_empty());
    }

    #[test]
    fn a_key_that_no_query_meets_has_no_gradient() {
        // RoPE turns two dimensions into each other, so both have to go.
        let (layer, kv_head, dims) = (2, 0, [3, 3 + HEAD_DIM / 2]);
        let blind = |name: &str, weights: &mut [f32]| {
            if name == "model.layers.2.self_attn.q_proj.weight" {
                for head in kv_head * GROUP..(kv_head + 1) * GROUP {
                    for dim in dims {
                        let output = head * HEAD_DIM + dim;
                        weights[output * HIDDEN..(output + 1) * HIDDEN].fill(0.0);
                    }
                }
            }
        };
        let fisher = of(blind, &documents(&[40]), 1, 1);
        let feature = |dim| (layer * KV_HEADS + kv_head) * HEAD_DIM + dim;
        assert_eq!(zeros(&fisher.keys), dims.map(feature));
        assert!(zeros(&fisher.values).is_empty());
    }

    #[test]
    fn documents_are_as_long_as_model_and_memory_allow() {
        let dir = tempfile::tempdir().unwrap();
        random_model::write(dir.path(), |_, _| {});
        let mut config = model::Config::load(dir.path()).unwrap();
        assert_eq!(document_tokens(&config), config.max_position_embeddings);
        config.max_position_embeddings = 131_072;
        assert_eq!(document_tokens(&config), MAX_TOKENS);
        // Llama 3.1 8B.
        (config.layers, config.hidden_size, config.intermediate_size) = (32, 4096, 14_336);
        (config.kv_heads, config.head_dim) = (8, 128);
        assert!((1000..1200).contains(&document_tokens(&config)));
    }

    #[test]
    fn labels_are_drawn_as_often_as_predicted() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut drawn = [0u32; 4];
        for _ in 0..8000 {
            drawn[draw(&[0.5, 0.0, 0.125, 0.375], &mut rng).unwrap() as usize] += 1;
        }
        for (count, expected) in drawn.into_iter().zip([4000, 0, 1000, 3000]) {
            assert!(count.abs_diff(expected) <= expected / 10, "{drawn:?}");
        }
        assert!(draw(&[f64::NAN], &mut rng).unwrap_err().to_string().contains("not finite"));
        assert!(draw(&[0.0, 0.0], &mut rng).is_err());
    }
}
