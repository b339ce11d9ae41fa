//! The prompt pass: tokens in, keys and values into the pages, the last token's logits left on the device.

use std::ops::Range;

use gpu::{CudaSlice, KvView};

use super::attention::Queries;
use super::cache::CudaCache;
use super::linear::{linear, padded};
use super::llama::CudaLlama;
use super::received::CudaReceived;
use super::timeline::{Stage, Timeline};
use crate::error::{Error, Result};

/// Whose logits a call wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logits {
    Unwanted,
    OfLast,
    OfEvery,
}

/// One chunk of a prompt on its way through the blocks.
struct Chunk<'a> {
    tokens: usize,
    /// Position of its first token.
    position: usize,
    kv: KvView,
    logits: Logits,
    received: Option<&'a mut CudaReceived>,
}

impl Chunk<'_> {
    /// Rows that a block's output is wanted for: in the last block only those that logits are made of.
    fn finished_rows(&self, is_last_block: bool) -> Range<usize> {
        match self.logits {
            Logits::OfLast if is_last_block => self.tokens - 1..self.tokens,
            Logits::Unwanted if is_last_block => self.tokens..self.tokens,
            _ => 0..self.tokens,
        }
    }

    /// The first row whose attention is counted.
    fn first_counted_row(&self) -> usize {
        let end = self.position + self.tokens;
        self.received.as_ref().map_or(end, |received| received.first_counted(self.position, end))
            - self.position
    }
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
            let logits = if index + 1 == count { Logits::OfLast } else { Logits::Unwanted };
            self.run_chunk(cache, ids, logits, received.as_deref_mut())?;
        }
        Ok(())
    }

    /// As [`Self::prefill`], and how many milliseconds its stages took on the device, which it waits for. Measuring takes some time too.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn timed_prefill(
        &mut self,
        cache: &mut CudaCache,
        tokens: &[u32],
        received: Option<&mut CudaReceived>,
    ) -> Result<Vec<(Stage, f32)>> {
        self.timeline = Some(Timeline::start(&self.device, &self.stream)?);
        let run = self.prefill(cache, tokens, received);
        let timeline = self.timeline.take();
        run?;
        timeline.map_or(Ok(Vec::new()), Timeline::finish)
    }

    /// As [`Self::prefill`], but waits for the logits of every token, `[tokens, vocab]`; for measuring quality.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn every_logits(&mut self, cache: &mut CudaCache, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check(cache, tokens, None)?;
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut all = Vec::with_capacity(tokens.len() * vocab);
        for ids in tokens.chunks(self.workspace.tokens) {
            self.run_chunk(cache, ids, Logits::OfEvery, None)?;
            let mut logits: CudaSlice<f32> =
                self.device.buffer(&self.stream, "logits of every token", ids.len() * vocab)?;
            let w = &mut self.workspace;
            let mut normed = w.normed.slice_mut(..ids.len() * hidden);
            let x = w.x.slice(..ids.len() * hidden);
            self.rows.rms_norm(&x, &self.weights.norm, self.config.rms_norm_eps, &mut normed)?;
            let (head, mut out) = (self.weights.head(), logits.slice_mut(..));
            linear(&mut self.gemm, &self.stream, head, &normed.as_view(), &mut out, false)?;
            all.extend(self.stream.clone_dtoh(&logits).map_err(gpu::Error::from)?);
        }
        Ok(all)
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
        if let Some(received) = received.filter(|received| received.prompt_tokens() < wanted) {
            return Err(Error::InvalidArgument(format!(
                "attention received by {} tokens is counted, and the prompt has at least {wanted}",
                received.prompt_tokens()
            )));
        }
        let vocab = self.config.vocab_size;
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(Error::Token { id, vocab }),
            None => Ok(()),
        }
    }

    fn run_chunk(
        &mut self,
        cache: &mut CudaCache,
        ids: &[u32],
        logits: Logits,
        received: Option<&mut CudaReceived>,
    ) -> Result<()> {
        let (tokens, position, hidden) = (ids.len(), cache.len(), self.config.hidden_size);
        let mut chunk = Chunk { tokens, position, kv: cache.view(), logits, received };
        self.workspace.stage_ids(&self.stream, ids)?;
        let w = &mut self.workspace;
        let mut x = w.x.slice_mut(..tokens * hidden);
        self.rows.embed(&w.ids.slice(..tokens), &self.weights.embedding.data, hidden, &mut x)?;
        mark(&mut self.timeline, Stage::Embedding)?;
        for layer in 0..self.config.layers {
            self.run_block(&mut chunk, layer)?;
        }
        cache.set_len(position + tokens)?;
        match logits {
            Logits::OfLast => self.last_logits(tokens - 1),
            Logits::Unwanted | Logits::OfEvery => Ok(()),
        }
    }

    fn run_block(&mut self, chunk: &mut Chunk<'_>, layer: usize) -> Result<()> {
        self.store_keys_and_values(chunk, layer)?;
        let rows = chunk.finished_rows(layer + 1 == self.config.layers);
        let attended = rows.start.min(chunk.first_counted_row())..rows.end;
        if !attended.is_empty() {
            self.attend(chunk, layer, attended)?;
        }
        match rows.is_empty() {
            true => Ok(()),
            false => self.finish_block(layer, rows),
        }
    }

    /// Queries, keys and values of the chunk; the latter two go into the cache.
    fn store_keys_and_values(&mut self, chunk: &Chunk<'_>, layer: usize) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let block = &self.weights.blocks[layer];
        let x = w.x.slice(..chunk.tokens * c.hidden_size);
        let mut normed = w.normed.slice_mut(..chunk.tokens * c.hidden_size);
        self.rows.rms_norm(&x, &block.input_norm, c.rms_norm_eps, &mut normed)?;
        mark(&mut self.timeline, Stage::Norm)?;
        let rows = padded(chunk.tokens);
        let normed = w.normed.slice(..rows * c.hidden_size);
        let mut qkv = w.qkv.slice_mut(..rows * block.qkv.outputs);
        linear(&mut self.gemm, &self.stream, &block.qkv, &normed, &mut qkv, false)?;
        mark(&mut self.timeline, Stage::QkvProduct)?;
        let mut qkv = w.qkv.slice_mut(..chunk.tokens * block.qkv.outputs);
        self.rows.rotate_and_store(&mut qkv, &self.rope, c.heads, chunk.position, layer, &chunk.kv)?;
        mark(&mut self.timeline, Stage::RotateAndStore)
    }

    /// Attention of the chunk's `rows`, the last of them among these, and what those that count give to the tokens.
    fn attend(&mut self, chunk: &mut Chunk<'_>, layer: usize, rows: Range<usize>) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let (features, width) = (self.weights.blocks[layer].qkv.outputs, c.heads * c.head_dim);
        let queries = |row: usize| Queries { heads: c.heads, position: chunk.position + row, layer };
        let qkv = w.qkv.slice(rows.start * features..rows.end * features);
        let mut attended = w.attended.slice_mut(rows.start * width..rows.end * width);
        let mut lse = w.lse.slice_mut(..rows.len() * c.heads);
        self.attention.attend(queries(rows.start), &qkv, &chunk.kv, &mut attended, &mut lse)?;
        mark(&mut self.timeline, Stage::Attention)?;
        let first = chunk.first_counted_row();
        match chunk.received.as_deref_mut() {
            Some(received) if first < chunk.tokens => {
                let qkv = w.qkv.slice(first * features..chunk.tokens * features);
                received.add(queries(first), &qkv, &chunk.kv, &lse.as_view(), rows.len())?;
                mark(&mut self.timeline, Stage::Received)
            }
            _ => Ok(()),
        }
    }

    /// What follows attention, for `rows` of the residual stream, in place; many rows must start with the first.
    fn finish_block(&mut self, layer: usize, rows: Range<usize>) -> Result<()> {
        let (c, w, timeline) = (&self.config, &mut self.workspace, &mut self.timeline);
        let (block, stream) = (&self.weights.blocks[layer], &self.stream);
        let (hidden, width) = (c.hidden_size, c.intermediate_size);
        let rows = rows.start..rows.start + padded(rows.len());
        let mut x = w.x.slice_mut(rows.start * hidden..rows.end * hidden);
        let attended = w.attended.slice(rows.start * block.output.inputs..rows.end * block.output.inputs);
        linear(&mut self.gemm, stream, &block.output, &attended, &mut x, true)?;
        mark(timeline, Stage::OutputProduct)?;
        let mut normed = w.normed.slice_mut(..rows.len() * hidden);
        self.rows.rms_norm(&x.as_view(), &block.post_norm, c.rms_norm_eps, &mut normed)?;
        mark(timeline, Stage::Norm)?;
        let normed = w.normed.slice(..rows.len() * hidden);
        let mut gate_up = w.gate_up.slice_mut(..rows.len() * 2 * width);
        linear(&mut self.gemm, stream, &block.gate_up, &normed, &mut gate_up, false)?;
        mark(timeline, Stage::GateUpProduct)?;
        let mut gated = w.gated.slice_mut(..rows.len() * width);
        self.rows.swiglu(&gate_up.as_view(), width, &mut gated)?;
        mark(timeline, Stage::Swiglu)?;
        let gated = gated.as_view();
        linear(&mut self.gemm, stream, &block.down, &gated, &mut x, true)?;
        mark(timeline, Stage::DownProduct)
    }

    /// Logits of one row of the residual stream.
    fn last_logits(&mut self, row: usize) -> Result<()> {
        let (c, w) = (&self.config, &mut self.workspace);
        let x = w.x.slice(row * c.hidden_size..(row + 1) * c.hidden_size);
        let mut normed = w.normed.slice_mut(..c.hidden_size);
        self.rows.rms_norm(&x, &self.weights.norm, c.rms_norm_eps, &mut normed)?;
        let mut logits = self.head.logits.slice_mut(..);
        linear(&mut self.gemm, &self.stream, self.weights.head(), &normed.as_view(), &mut logits, false)?;
        mark(&mut self.timeline, Stage::Head)
    }
}

/// If a call is being timed: what was queued since the last mark was `stage`.
fn mark(timeline: &mut Option<Timeline>, stage: Stage) -> Result<()> {
    timeline.as_mut().map_or(Ok(()), |timeline| timeline.mark(stage))
}
