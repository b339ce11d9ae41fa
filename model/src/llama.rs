//! The forward pass: token ids of any number of sequences in, logits out, keys and values left in the open caches.
//!
//! A prompt chunk is one sequence with many tokens, a decode step many sequences with one token each; both are the same
//! call. Linear layers are candle tensors `[tokens, features]`, attention works on the caches (see [`crate::attention`]).

use std::path::Path;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;

use crate::attention::{ReceivedAttention, View, attend};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, KvElement};
use crate::rope::{RopeTable, inv_freq};
use crate::simd;
use crate::weights::Weights;

/// One sequence's part in a forward call.
#[derive(Debug)]
pub struct Sequence<'a, E: KvElement> {
    /// What came before; the call appends to it.
    pub cache: &'a mut KvCache<E>,
    /// The next tokens, at least one.
    pub tokens: &'a [u32],
    /// Where to add the attention received, if it is wanted.
    pub received: Option<&'a mut ReceivedAttention>,
}

/// Which positions' logits a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsOf {
    /// One row per sequence.
    LastToken,
    /// One row per token, the sequences one after the other.
    EveryToken,
}

struct Block {
    input_norm: Tensor, // [hidden]
    qkv: Tensor,        // [(heads + 2 * kv_heads) * head_dim, hidden]
    output: Tensor,     // [hidden, heads * head_dim]
    post_norm: Tensor,  // [hidden]
    gate_up: Tensor,    // [2 * intermediate, hidden]
    down: Tensor,       // [hidden, intermediate]
}

/// A loaded Llama.
pub struct Llama {
    config: Config,
    fingerprint: [u8; 16],
    embedding: Tensor, // [vocab, hidden]
    blocks: Vec<Block>,
    norm: Tensor, // [hidden]
    head: Tensor, // [vocab, hidden]
    inv_freq: Vec<f32>,
    rope: RopeTable,
    device: Device,
}

impl std::fmt::Debug for Llama {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llama").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Llama {
    /// Loads a Hugging Face model directory; weights become f32 on the CPU.
    ///
    /// # Errors
    /// When `config.json` or a tensor is missing, malformed or of another architecture.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let (config, device) = (Config::load(model_dir)?, Device::Cpu);
        let weights = Weights::open(model_dir, &device)?;
        let embedding = weights.get("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            weights.get("lm_head.weight", &[config.vocab_size, config.hidden_size])?
        };
        let blocks =
            (0..config.layers).map(|layer| Block::load(&weights, &config, layer)).collect::<Result<_>>()?;
        let inv_freq = inv_freq(&config.rope, config.head_dim);
        Ok(Self {
            fingerprint: weights.fingerprint()?,
            embedding,
            blocks,
            norm: weights.get("model.norm.weight", &[config.hidden_size])?,
            head,
            rope: RopeTable::new(&inv_freq, config.max_position_embeddings),
            inv_freq,
            device,
            config,
        })
    }

    /// Dimensions and constants.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// See [`Weights::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 16] {
        self.fingerprint
    }

    /// Frequencies of the rotary embedding, `[head_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Runs the tokens of every sequence after what its cache holds, and appends their keys and values.
    ///
    /// Returns logits, `[rows, vocab]` row-major, rows as `logits` asks.
    ///
    /// # Errors
    /// For an empty sequence, a token outside of the vocabulary or a cache without room; no cache has changed then.
    pub fn forward<E: KvElement>(&self, batch: &mut [Sequence<'_, E>], logits: LogitsOf) -> Result<Vec<f32>> {
        self.check(batch)?;
        let ids: Vec<u32> = batch.iter().flat_map(|s| s.tokens.iter().copied()).collect();
        let mut x = self.embedding.index_select(&Tensor::new(ids.as_slice(), &self.device)?, 0)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = self.attention_half(layer, block, batch, &x)?;
            x = self.feed_forward_half(block, &x)?;
        }
        for sequence in batch.iter_mut() {
            let len = sequence.cache.len() + sequence.tokens.len();
            sequence.cache.set_len(len)?;
        }
        self.logits(batch, &x, logits)
    }

    fn check<E: KvElement>(&self, batch: &[Sequence<'_, E>]) -> Result<()> {
        if batch.is_empty() || batch.iter().any(|s| s.tokens.is_empty()) {
            return Err(Error::InvalidArgument("a sequence without tokens".into()));
        }
        for sequence in batch {
            let capacity = sequence.cache.capacity().min(self.rope.positions());
            let wanted = sequence.cache.len() + sequence.tokens.len();
            if wanted > capacity {
                return Err(Error::CacheFull { wanted, capacity });
            }
            let vocab = self.config.vocab_size;
            if let Some(&id) = sequence.tokens.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::Token { id, vocab });
            }
        }
        Ok(())
    }

    /// `x + attention(norm(x))`, `[tokens, hidden]`; writes the layer's keys and values.
    fn attention_half<E: KvElement>(
        &self,
        layer: usize,
        block: &Block,
        batch: &mut [Sequence<'_, E>],
        x: &Tensor,
    ) -> Result<Tensor> {
        let c = &self.config;
        let qkv = self.normed(x, &block.input_norm)?.matmul(&block.qkv.t()?)?;
        let tokens = qkv.dim(0)?;
        let mut queries = vec![0f32; tokens * c.heads * c.head_dim];
        with_slice(&qkv, |qkv| self.rotate_and_store(layer, batch, qkv, &mut queries))?;
        let mut views: Vec<_> = batch
            .iter_mut()
            .map(|s| View {
                position: s.cache.len(),
                tokens: s.tokens.len(),
                cache: s.cache,
                received: s.received.as_deref_mut(),
            })
            .collect();
        let mut out = vec![0f32; queries.len()];
        attend(c, layer, &mut views, &queries, &mut out);
        let out = Tensor::from_vec(out, (tokens, c.heads * c.head_dim), &self.device)?;
        Ok((x + out.matmul(&block.output.t()?)?)?)
    }

    /// Splits `qkv` `[tokens, heads + 2 * kv_heads, head_dim]`: turned queries to `queries` `[tokens, heads, head_dim]`,
    /// turned keys and values into the caches.
    fn rotate_and_store<E: KvElement>(
        &self,
        layer: usize,
        batch: &mut [Sequence<'_, E>],
        qkv: &[f32],
        queries: &mut [f32],
    ) {
        let c = &self.config;
        let dim = c.head_dim;
        let mut turned = vec![0f32; dim];
        let mut rows = qkv.chunks_exact((c.heads + 2 * c.kv_heads) * dim);
        let mut outs = queries.chunks_exact_mut(c.heads * dim);
        for sequence in batch {
            let start = sequence.cache.len();
            for (position, (row, out)) in
                (start..).zip(rows.by_ref().zip(outs.by_ref()).take(sequence.tokens.len()))
            {
                let (q, kv) = row.split_at(c.heads * dim);
                for (q, out) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                    self.rope.rotate(position, q, out);
                }
                let (k, v) = kv.split_at(c.kv_heads * dim);
                for head in 0..c.kv_heads {
                    let span = head * dim..(head + 1) * dim;
                    let (key, value) = sequence.cache.entry_mut(layer * c.kv_heads + head, position);
                    self.rope.rotate(position, &k[span.clone()], &mut turned);
                    key.iter_mut().zip(&turned).for_each(|(to, x)| *to = E::from_f32(*x));
                    value.iter_mut().zip(&v[span]).for_each(|(to, x)| *to = E::from_f32(*x));
                }
            }
        }
    }

    /// `x + down(silu(gate(norm(x))) * up(norm(x)))`, `[tokens, hidden]`.
    fn feed_forward_half(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let width = self.config.intermediate_size;
        let gate_up = self.normed(x, &block.post_norm)?.matmul(&block.gate_up.t()?)?;
        let tokens = gate_up.dim(0)?;
        let mut hidden = vec![0f32; tokens * width];
        with_slice(&gate_up, |gate_up| {
            hidden.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).for_each(|(out, row)| {
                let (gate, up) = row.split_at(width);
                simd::swiglu(gate, up, out);
            });
        })?;
        let hidden = Tensor::from_vec(hidden, (tokens, width), &self.device)?;
        Ok((x + hidden.matmul(&block.down.t()?)?)?)
    }

    fn logits<E: KvElement>(
        &self,
        batch: &[Sequence<'_, E>],
        x: &Tensor,
        which: LogitsOf,
    ) -> Result<Vec<f32>> {
        let x = match which {
            LogitsOf::EveryToken => x.clone(),
            LogitsOf::LastToken => {
                let ends = batch.iter().scan(0u32, |end, s| {
                    *end += s.tokens.len() as u32;
                    Some(*end - 1)
                });
                x.index_select(&Tensor::from_iter(ends, &self.device)?, 0)?
            }
        };
        let logits = self.normed(&x, &self.norm)?.matmul(&self.head.t()?)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(&x.contiguous()?, weight, self.config.rms_norm_eps as f32)?)
    }
}

impl Block {
    fn load(weights: &Weights, c: &Config, layer: usize) -> Result<Self> {
        let get =
            |name: &str, shape: &[usize]| weights.get(&format!("model.layers.{layer}.{name}.weight"), shape);
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = [
            get("self_attn.q_proj", &[queries, c.hidden_size])?,
            get("self_attn.k_proj", &[keys, c.hidden_size])?,
            get("self_attn.v_proj", &[keys, c.hidden_size])?,
        ];
        let gate_up = [
            get("mlp.gate_proj", &[c.intermediate_size, c.hidden_size])?,
            get("mlp.up_proj", &[c.intermediate_size, c.hidden_size])?,
        ];
        Ok(Self {
            input_norm: get("input_layernorm", &[c.hidden_size])?,
            qkv: Tensor::cat(&qkv, 0)?,
            output: get("self_attn.o_proj", &[c.hidden_size, queries])?,
            post_norm: get("post_attention_layernorm", &[c.hidden_size])?,
            gate_up: Tensor::cat(&gate_up, 0)?,
            down: get("mlp.down_proj", &[c.hidden_size, c.intermediate_size])?,
        })
    }
}

/// Lends a contiguous CPU tensor's elements.
fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().expect("products are contiguous; this is a bug");
    match &*storage {
        Storage::Cpu(CpuStorage::F32(all)) => Ok(f(&all[start..end])),
        _ => {
            Err(Error::InvalidArgument("the CPU forward pass got a tensor of another device or type".into()))
        }
    }
}
