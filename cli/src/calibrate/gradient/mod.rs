//! The gradient of a Llama's own loss with respect to every entry of its KV cache.
//!
//! Autograd runs through one nonlinear piece at a time (`pieces`, `attention`); between them the chain rule is written
//! out (`block`). Of the forward pass only the residual stream is kept, each block's inside is computed again when the
//! gradient comes to it. So a document needs memory for one block, not for all of them.

mod attention;
mod block;
mod pieces;
#[cfg(test)]
pub(super) mod random_model;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{D, DType, Device, Tensor};
use model::{Config, Weights, inv_freq};

use block::{Block, Kept, linear};
use pieces::{Turn, rms_norm, rms_norm_gradient};

/// Attention scores computed at a time: 16 MiB in f32.
const SCORES: usize = 1 << 22;
/// Logits computed at a time: 64 MiB in f32. Fewer would read the weights of a large vocabulary too often.
const LOGITS: usize = 1 << 24;

/// A Llama that gradients can be asked of.
pub(super) struct Gradient {
    config: Config,
    inv_freq: Vec<f32>,
    embedding: Tensor, // [vocab, hidden]
    blocks: Vec<Block>,
    norm: Tensor,  // [hidden]
    head: Tensor,  // [vocab, hidden]
    logits: usize, // at most so many at a time
}

/// d loss / d cache entry of one document; a list per layer.
pub(super) struct CacheGradient {
    /// `[tokens, kv_heads * head_dim]` each, with respect to keys before RoPE.
    pub(super) keys: Vec<Tensor>,
    /// `[tokens, kv_heads * head_dim]` each.
    pub(super) values: Vec<Tensor>,
}

impl Gradient {
    /// Loads a Hugging Face model directory; weights become `dtype`, f32 or f64, on `device`.
    ///
    /// # Errors
    /// When a file is missing, damaged or of something else than a Llama.
    pub(super) fn load(model_dir: &Path, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::in_parts(model_dir, dtype, device, SCORES, LOGITS)
    }

    fn in_parts(
        model_dir: &Path,
        dtype: DType,
        device: &Device,
        scores: usize,
        logits: usize,
    ) -> anyhow::Result<Self> {
        let config = Config::load(model_dir)?;
        let weights = Weights::open(model_dir)?;
        let get = |name: &str, shape: &[usize]| -> anyhow::Result<Tensor> {
            let values = weights.get(name, shape)?;
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
        };
        let vocabulary = [config.vocab_size, config.hidden_size];
        let embedding = get("model.embed_tokens.weight", &vocabulary)?;
        let head =
            if config.tie_word_embeddings { embedding.clone() } else { get("lm_head.weight", &vocabulary)? };
        let block = |layer: usize| {
            let get =
                |part: &str, shape: &[usize]| get(&format!("model.layers.{layer}.{part}.weight"), shape);
            Block::load(get, &config, scores)
        };
        Ok(Self {
            inv_freq: inv_freq(&config.rope, config.head_dim),
            embedding,
            blocks: (0..config.layers).map(block).collect::<anyhow::Result<_>>()?,
            norm: get("model.norm.weight", &[config.hidden_size])?,
            head,
            config,
            logits,
        })
    }

    /// Dimensions and constants.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Gradient of the summed negative log-likelihood of one label per position. `label` chooses the next position's
    /// label, given the model's prediction `[vocab]` there.
    ///
    /// # Errors
    /// For no tokens, tokens outside of the vocabulary or what `label` fails with.
    pub(super) fn of_cache(
        &self,
        tokens: &[u32],
        label: &mut impl FnMut(&[f64]) -> anyhow::Result<u32>,
    ) -> anyhow::Result<CacheGradient> {
        let turn = Turn::new(&self.inv_freq, tokens.len(), &self.embedding)?;
        let (kept, x) = self.forward(tokens, &turn)?;
        let mut x = self.head_gradient(&x, label)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (block, kept) in self.blocks.iter().zip(kept).rev() {
            let (input, qkv) = block.gradient(&kept, &turn, &x)?;
            x = input;
            keys.push(qkv.keys);
            values.push(qkv.values);
        }
        keys.reverse();
        values.reverse();
        Ok(CacheGradient { keys, values })
    }

    /// The residual stream at every block and after the last one.
    fn forward(&self, tokens: &[u32], turn: &Turn) -> anyhow::Result<(Vec<Kept>, Tensor)> {
        let mut x = self.embed(tokens)?;
        let mut all = Vec::new();
        for block in &self.blocks {
            let qkv = block.project(&x)?;
            let (kept, output) = block.finish(x, qkv, turn)?;
            all.push(kept);
            x = output;
        }
        Ok((all, x))
    }

    fn embed(&self, tokens: &[u32]) -> anyhow::Result<Tensor> {
        let vocab = self.config.vocab_size;
        ensure!(!tokens.is_empty(), "a document without tokens has no gradient");
        if let Some(&id) = tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(model::Error::Token { id, vocab }.into());
        }
        Ok(self.embedding.index_select(&Tensor::new(tokens, self.embedding.device())?, 0)?)
    }

    /// Gradient with respect to the residual stream after the last block, `x` `[tokens, hidden]`.
    fn head_gradient(
        &self,
        x: &Tensor,
        label: &mut impl FnMut(&[f64]) -> anyhow::Result<u32>,
    ) -> anyhow::Result<Tensor> {
        let (tokens, eps) = (x.dim(0)?, self.config.rms_norm_eps);
        let normed = rms_norm(x, &self.norm, eps)?;
        let rows = (self.logits / self.config.vocab_size).max(1);
        let part = |start: usize| {
            let logits = linear(&normed.narrow(0, start, rows.min(tokens - start))?, &self.head)?;
            Ok(self.loss_gradient(&logits, label)?.matmul(&self.head)?)
        };
        let parts: Vec<Tensor> = (0..tokens).step_by(rows).map(part).collect::<anyhow::Result<_>>()?;
        rms_norm_gradient(x, &self.norm, eps, &Tensor::cat(&parts, 0)?)
    }

    /// Gradient with respect to `logits` `[rows, vocab]`: the prediction, less 1 at the label.
    fn loss_gradient(
        &self,
        logits: &Tensor,
        label: &mut impl FnMut(&[f64]) -> anyhow::Result<u32>,
    ) -> anyhow::Result<Tensor> {
        let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        let prediction = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mut labels = Vec::new();
        for row in 0..prediction.dim(0)? {
            labels.push(label(&prediction.get(row)?.to_dtype(DType::F64)?.to_vec1()?)?);
        }
        let labels = Tensor::from_vec(labels, (prediction.dim(0)?, 1), logits.device())?;
        let ones = labels.ones_like()?.to_dtype(logits.dtype())?;
        prediction.scatter_add(&labels, &ones.neg()?, 1).context("a label is outside of the vocabulary")
    }
}
