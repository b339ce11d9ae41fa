//! The forward pass: token ids of any number of sequences in, logits out, keys and values left in the open caches.
//!
//! A prompt chunk is one sequence with many tokens, a decode step many sequences with one token each; both are the same
//! call. Rows go through a block's linear layers in tiles (see [`crate::block`]), attention works on the caches (see
//! [`crate::attention`]).

use std::path::Path;

use rayon::prelude::*;

use crate::attention::{ReceivedAttention, View, attend};
use crate::block::{Block, Spread};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, KvElement};
use crate::linear::Linear;
use crate::rope::{RopeTable, inv_freq};
use crate::simd;
use crate::weights::Weights;

/// Fewest rows of a tile: a product packs the weights for each tile, which fewer rows would not pay back.
const MIN_TILE: usize = 32;

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

/// A loaded Llama.
pub struct Llama {
    config: Config,
    fingerprint: [u8; 16],
    embedding: Linear, // hidden -> vocab; its rows are the tokens' vectors
    blocks: Vec<Block>,
    norm: Vec<f32>,       // [hidden]
    head: Option<Linear>, // hidden -> vocab; none where the embedding serves
    inv_freq: Vec<f32>,
    rope: RopeTable,
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
        let config = Config::load(model_dir)?;
        let weights = Weights::open(model_dir)?;
        let vocabulary = |name| Linear::load(&weights, config.hidden_size, &[(name, config.vocab_size)]);
        let inv_freq = inv_freq(&config.rope, config.head_dim);
        Ok(Self {
            embedding: vocabulary("model.embed_tokens.weight")?,
            head: (!config.tie_word_embeddings).then(|| vocabulary("lm_head.weight")).transpose()?,
            blocks: (0..config.layers)
                .map(|layer| Block::load(&weights, &config, layer))
                .collect::<Result<_>>()?,
            norm: weights.get("model.norm.weight", &[config.hidden_size])?,
            rope: RopeTable::new(&inv_freq, config.max_position_embeddings),
            inv_freq,
            fingerprint: weights.fingerprint()?,
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

    /// What the first block's attention sees of a token, `[hidden]`: its normalised embedding. The first layer's keys (before RoPE) and
    /// values are linear in it.
    ///
    /// # Panics
    /// For a token outside of the vocabulary.
    pub fn token_features(&self, token: u32, out: &mut [f32]) {
        out.copy_from_slice(self.embedding.row(token as usize));
        if let Some(first) = self.blocks.first() {
            first.normalise(out);
        }
    }

    /// Runs the tokens of every sequence after what its cache holds, and appends their keys and values.
    ///
    /// Returns logits, `[rows, vocab]` row-major, rows as `logits` asks.
    ///
    /// # Errors
    /// For an empty sequence, a token outside of the vocabulary or a cache without room; no cache has changed then.
    pub fn forward<E: KvElement>(&self, batch: &mut [Sequence<'_, E>], logits: LogitsOf) -> Result<Vec<f32>> {
        self.check(batch)?;
        let ids = batch.iter().flat_map(|s| s.tokens);
        let mut x: Vec<f32> = ids.flat_map(|id| self.embedding.row(*id as usize)).copied().collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            self.run_block(layer, block, batch, &mut x);
        }
        for sequence in batch.iter_mut() {
            let len = sequence.cache.len() + sequence.tokens.len();
            sequence.cache.set_len(len)?;
        }
        Ok(self.logits(batch, &x, logits))
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

    /// One block over `x` `[tokens, hidden]` in place; writes the layer's keys and values.
    fn run_block<E: KvElement>(
        &self,
        layer: usize,
        block: &Block,
        batch: &mut [Sequence<'_, E>],
        x: &mut [f32],
    ) {
        let c = &self.config;
        let tokens = x.len() / c.hidden_size;
        let (tile, spread) = tiling(tokens);
        let mut qkv = vec![0f32; tokens * block.qkv_features()];
        x.par_chunks(tile * c.hidden_size)
            .zip(qkv.par_chunks_mut(tile * block.qkv_features()))
            .for_each(|(x, qkv)| block.project(x, qkv, spread));
        let mut queries = vec![0f32; tokens * c.heads * c.head_dim];
        self.rotate_and_store(layer, batch, &qkv, &mut queries);
        let mut views: Vec<_> = batch
            .iter_mut()
            .map(|s| View {
                position: s.cache.len(),
                tokens: s.tokens.len(),
                cache: s.cache,
                received: s.received.as_deref_mut(),
            })
            .collect();
        let mut attended = vec![0f32; queries.len()];
        attend(c, layer, &mut views, &queries, &mut attended);
        x.par_chunks_mut(tile * c.hidden_size)
            .zip(attended.par_chunks(tile * c.heads * c.head_dim))
            .for_each(|(x, attended)| block.finish(x, attended, spread));
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

    fn logits<E: KvElement>(&self, batch: &[Sequence<'_, E>], x: &[f32], which: LogitsOf) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut rows = match which {
            LogitsOf::EveryToken => x.to_vec(),
            LogitsOf::LastToken => {
                let ends = batch.iter().scan(0, |end, s| {
                    *end += s.tokens.len();
                    Some(*end)
                });
                ends.flat_map(|end| &x[(end - 1) * hidden..end * hidden]).copied().collect()
            }
        };
        simd::rms_norm(&mut rows, &self.norm, self.config.rms_norm_eps as f32);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let (tile, spread) = tiling(rows.len() / hidden);
        let mut logits = vec![0f32; rows.len() / hidden * head.outputs()];
        rows.par_chunks(tile * hidden)
            .zip(logits.par_chunks_mut(tile * head.outputs()))
            .for_each(|(rows, logits)| spread.product(head, rows, logits, false));
        logits
    }
}

/// Rows per tile, and how a tile's products use the machine: many rows are shared out among the threads, few go through
/// together and share out the weights instead.
fn tiling(rows: usize) -> (usize, Spread) {
    if rows < MIN_TILE * 2 {
        return (rows.max(1), Spread::AllThreads);
    }
    (rows.div_ceil(rayon::current_num_threads()).max(MIN_TILE), Spread::OneThread)
}
