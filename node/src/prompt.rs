//! The prompt pass, chunk by chunk, so that other work can go on between chunks and each chunk's cache can leave while
//! the next one computes.

use std::ops::Range;

use codec::{KvBlock, importance};
use half::bf16;
use model::{Drawn, Draws, KvCache, Llama, LogitsOf, ReceivedAttention, Sequence};

use crate::compute::Received;

/// Tokens of a chunk that is coded after its prompt, by default: longer ones code hardly better, shorter ones start sending sooner.
pub const AFTER_CHUNK_TOKENS: usize = 2048;

/// A prompt on its way through the model.
#[derive(Debug)]
pub struct PromptPass {
    tokens: Vec<u32>,
    chunk: usize,
    /// What each layer's attention counts, where it is summed up.
    layer_weights: Option<Vec<f32>>,
    /// The sums so far, made where the model runs when it starts.
    received: Option<Received>,
}

/// What is left to do after a chunk.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// More chunks follow.
    More,
    /// The prompt is done, and this is the first token of the answer.
    FirstToken(Drawn),
}

impl PromptPass {
    /// A pass over `tokens`, `chunk` of them at a time.
    #[must_use]
    pub fn new(tokens: Vec<u32>, chunk: usize) -> Self {
        Self { tokens, chunk: chunk.max(1), layer_weights: None, received: None }
    }

    /// Also sums up the attention that each token receives from the prompt's last queries, for [`Self::into_received`]; each layer's
    /// counts as much as its weight says, all the same where there are none.
    #[must_use]
    pub fn collecting(mut self, layer_weights: Option<&[f32]>) -> Self {
        self.layer_weights = Some(layer_weights.unwrap_or_default().to_vec());
        self
    }

    /// What each token of the prompt received, once the pass is done; none if it was not collected.
    #[must_use]
    pub fn into_received(self) -> Option<Received> {
        self.received
    }

    /// Runs the next chunk after what `cache` holds; the range says which tokens it was.
    ///
    /// # Errors
    /// What the model refuses.
    pub fn advance(
        &mut self,
        llama: &Llama,
        cache: &mut KvCache<bf16>,
        draws: &Draws,
    ) -> model::Result<(Range<usize>, Progress)> {
        let chunk = self.next_chunk(cache.len());
        if let (Some(weights), None) = (&self.layer_weights, &self.received) {
            let tokens = self.tokens.len();
            let received = ReceivedAttention::of_last(importance::QUERIES, importance::NEAREST, tokens);
            self.received = Some(Received::Host(received.weighted(weights)));
        }
        let received = self.received.as_mut().map(Received::host);
        let tokens = &self.tokens[chunk.clone()];
        let mut logits = llama.forward(&mut [Sequence { cache, tokens, received }], LogitsOf::LastToken)?;
        let is_last = chunk.end == self.tokens.len();
        let first_token = is_last.then(|| draws.draw(&mut logits, chunk.end));
        Ok((chunk, first_token.map_or(Progress::More, Progress::FirstToken)))
    }

    /// As [`Self::advance`], on a GPU; everything is computed on return.
    ///
    /// # Errors
    /// What the model or the device refuses.
    #[cfg(feature = "cuda")]
    pub(crate) fn advance_on(
        &mut self,
        llama: &mut model::cuda::CudaLlama,
        cache: &mut model::cuda::CudaCache,
        draws: &Draws,
    ) -> model::Result<(Range<usize>, Progress)> {
        let chunk = self.next_chunk(cache.len());
        if let (Some(weights), None) = (&self.layer_weights, &self.received) {
            let (queries, nearest, tokens) = (importance::QUERIES, importance::NEAREST, self.tokens.len());
            let received = model::cuda::CudaReceived::of_last(llama, queries, nearest, tokens)?;
            self.received = Some(Received::Device(received.weighted(weights)));
        }
        let received = self.received.as_mut().map(Received::device);
        llama.prefill(cache, &self.tokens[chunk.clone()], received)?;
        if chunk.end < self.tokens.len() {
            llama.synchronize()?;
            return Ok((chunk, Progress::More));
        }
        let first_token = llama.draw(draws, chunk.end)?;
        Ok((chunk, Progress::FirstToken(first_token)))
    }

    fn next_chunk(&self, start: usize) -> Range<usize> {
        start..(start + self.chunk).min(self.tokens.len())
    }
}

/// Copies a token range out of a cache, as the codec takes it.
///
/// # Errors
/// For tokens that the cache does not hold.
pub fn export(cache: &KvCache<bf16>, tokens: Range<usize>) -> model::Result<KvBlock> {
    let (first_token, count) = (tokens.start, tokens.len());
    let (keys, values) = cache.read_range(tokens)?;
    Ok(KvBlock { first_token, tokens: count, keys, values })
}

/// The steps' shifts of a prompt's tokens, by the attention that they received.
#[must_use]
pub fn shifts(received: &ReceivedAttention) -> Vec<i8> {
    importance::shifts(&importance::Received { earlier: &received.earlier, nearest: &received.nearest })
}

/// Copies a decoded block into a cache at its place.
///
/// # Errors
/// For a block that does not fit.
pub fn import(cache: &mut KvCache<bf16>, block: &KvBlock) -> model::Result<()> {
    let tokens = block.first_token..block.first_token + block.tokens;
    cache.write_range(tokens, &block.keys, &block.values)
}

/// Cuts `tokens` into as few pieces as possible of up to `largest`, all of nearly the same size: a short last one would code
/// badly.
#[must_use = "iterators do nothing until they are used"]
pub fn pieces(tokens: usize, largest: usize) -> impl Iterator<Item = Range<usize>> {
    let size = tokens.div_ceil(tokens.div_ceil(largest.max(1)).max(1)).max(1);
    (0..tokens).step_by(size).map(move |start| start..(start + size).min(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_and_are_about_the_same() {
        for (tokens, largest, expected) in [
            (0, 2048, &[][..]),
            (1, 2048, &[(0, 1)]),
            (2048, 2048, &[(0, 2048)]),
            (2049, 2048, &[(0, 1025), (1025, 2049)]),
            (10, 4, &[(0, 4), (4, 8), (8, 10)]),
            (3, 1, &[(0, 1), (1, 2), (2, 3)]),
        ] {
            let cut: Vec<_> = pieces(tokens, largest).map(|piece| (piece.start, piece.end)).collect();
            assert_eq!(cut, expected, "{tokens} by {largest}");
        }
    }
}
