//! The prompt pass: tokens in, keys and values into the pages, the last token's logits left on the device.

use std::ops::Range;

use gpu::KvView;

use super::attention::Queries;
use super::cache::CudaCache;
use super::linear::linear;
use super::llama::CudaLlama;
use super::received::CudaReceived;
use crate::error::{Error, Result};

/// One chunk of a prompt on its way through the blocks.
struct Chunk<'a> {
    tokens: usize,
    /// Position of its first token.
    position: usize,
    kv: KvView,
    /// Whether the call's last token is among its own, whose logits are wanted.
    is_last: bool,
    received: Option<&'a mut CudaReceived>,
}

impl CudaLlama {
    /// Queues the prompt pass of `tokens` after what `cache` holds, and leaves the last token's logits on the device (see
    /// [`Self::logits`], [`Self::greedy`]). More tokens than a chunk go through in several. Where `received` is given, the attention from
    /// the queries that it counts is added to it.
    ///
    /// # Errors
    /// For no tokens, a token outside of the vocabulary, a cache of another shape or without room; nothing has changed then.
    pub fn prefill(
        &mut self,
        cache: &mut CudaCache,
        tokens: &[u32],
        mut received: Option<&mut CudaReceived>,
    ) -> Result<()> {
        self.check(cache, tokens, received.as_deref())?;
        let chunks = tokens.chunks(self.workspace.tokens);
        let count = chunks.len();
        for (index, ids) in chunks.enumerate() {
            self.workspace.stage_ids(&self.stream, ids)?;
            let mut chunk = Chunk {
                tokens: ids.len(),
                position: cache.len(),
                kv: cache.view(),
                is_last: index + 1 == count,
                received: received.as_deref_mut(),
            };
            self.run_chunk(&mut chunk)?;
            cache.set_len(chunk.position + chunk.tokens)?;
        }
        Ok(())
    }

    fn check(&self, cache: &CudaCache, tokens: &[u32], received: Option<&CudaReceived>) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::InvalidArgument("a sequence without tokens".into()));
        }
        if cache.pages().pool().shape() != self.kv_shape() {
            return Err(Error::InvalidArgument("a cache of another model's shape".into()));
        }
        let capacity = cache.capacity().min(self.rope.positions());
        let wanted = cache.len() + tokens.len();
        if wanted > capacity {
            return Err(Error::CacheFull { wanted, capacity });
        }
        if let Some(received) = received.filter(|received| received.prompt_tokens < wanted) {
            return Err(Error::InvalidArgument(format!(
                "attention received by {} tokens is counted, and the prompt has at least {wanted}",
                received.prompt_tokens
            )));
        }
        let vocab = self.config.vocab_size;
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(Error::Token { id, vocab }),
            None => Ok(()),
        }
    }

    fn run_chunk(&mut self, chunk: &mut Chunk<'_>) -> Result<()> {
        let hidden = self.config.hidden_size;
        let w = &mut self.workspace;
        let mut x = w.x.slice_mut(..chunk.tokens * hidden);
        self.rows.embed(&w.ids.slice(..chunk.tokens), &self.weights.embedding.data, hidden, &mut x)?;
        for layer in 0..self.config.layers {
            let all = 0..chunk.tokens;
            self.store_keys_and_values(chunk, layer)?;
            self.attend(chunk, layer, all.clone())?;
            self.finish_block(layer, all)?;
        }
        if chunk.is_last {
            self.last_logits(chunk.tokens - 1)?;
        }
        Ok(())
    }

    /// Queries, keys and values of the chunk; the latter two go into the cache.
    fn store_keys_and_values(&mut self, chunk: &Chunk<'_>, layer: usize) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let block = &self.weights.blocks[layer];
        let x = w.x.slice(..chunk.tokens * c.hidden_size);
        let mut normed = w.normed.slice_mut(..chunk.tokens * c.hidden_size);
        self.rows.rms_norm(&x, &block.input_norm, c.rms_norm_eps, &mut normed)?;
        let mut qkv = w.qkv.slice_mut(..chunk.tokens * block.qkv.outputs);
        linear(&mut self.gemm, &self.stream, &block.qkv, &normed.as_view(), &mut qkv, false)?;
        self.rows.rotate_and_store(&mut qkv, &self.rope, c.heads, chunk.position, layer, &chunk.kv)
    }

    /// Attention of the chunk's `rows`.
    fn attend(&mut self, chunk: &mut Chunk<'_>, layer: usize, rows: Range<usize>) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let features = self.weights.blocks[layer].qkv.outputs;
        let width = c.heads * c.head_dim;
        let qkv = w.qkv.slice(rows.start * features..rows.end * features);
        let mut attended = w.attended.slice_mut(rows.start * width..rows.end * width);
        let mut lse = w.lse.slice_mut(..rows.len() * c.heads);
        let queries = Queries { heads: c.heads, position: chunk.position + rows.start, layer };
        self.attention.attend(queries, &qkv, &chunk.kv, &mut attended, &mut lse)
    }

    /// What follows attention, for `rows` of the residual stream, in place.
    fn finish_block(&mut self, layer: usize, rows: Range<usize>) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let (block, stream) = (&self.weights.blocks[layer], &self.stream);
        let (hidden, width) = (c.hidden_size, c.intermediate_size);
        let mut x = w.x.slice_mut(rows.start * hidden..rows.end * hidden);
        let attended = w.attended.slice(rows.start * block.output.inputs..rows.end * block.output.inputs);
        linear(&mut self.gemm, stream, &block.output, &attended, &mut x, true)?;
        let mut normed = w.normed.slice_mut(..rows.len() * hidden);
        self.rows.rms_norm(&x.as_view(), &block.post_norm, c.rms_norm_eps, &mut normed)?;
        let mut gate_up = w.gate_up.slice_mut(..rows.len() * 2 * width);
        linear(&mut self.gemm, stream, &block.gate_up, &normed.as_view(), &mut gate_up, false)?;
        let mut gated = w.gated.slice_mut(..rows.len() * width);
        self.rows.swiglu(&gate_up.as_view(), width, &mut gated)?;
        linear(&mut self.gemm, stream, &block.down, &gated.as_view(), &mut x, true)
    }

    /// Logits of one row of the residual stream.
    fn last_logits(&mut self, row: usize) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let x = w.x.slice(row * c.hidden_size..(row + 1) * c.hidden_size);
        let mut normed = w.normed.slice_mut(..c.hidden_size);
        self.rows.rms_norm(&x, &self.weights.norm, c.rms_norm_eps, &mut normed)?;
        let mut logits = self.head.logits.slice_mut(..);
        linear(&mut self.gemm, &self.stream, self.weights.head(), &normed.as_view(), &mut logits, false)
    }
}
