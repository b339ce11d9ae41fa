//! The prompt pass, chunk by chunk, so that other work can go on between chunks and each chunk's cache can leave while
//! the next one computes.

use std::ops::Range;

use codec::KvBlock;
use half::bf16;
use model::{KvCache, Llama, LogitsOf, ReceivedAttention, Sampling, Sequence};

/// A prompt on its way through the model.
#[derive(Debug)]
pub struct PromptPass {
    tokens: Vec<u32>,
    chunk: usize,
    received: Option<ReceivedAttention>,
}

/// What is left to do after a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More chunks follow.
    More,
    /// The prompt is done, and this is the first token of the answer.
    FirstToken(u32),
}

impl PromptPass {
    /// A pass over `tokens`, `chunk` of them at a time.
    #[must_use]
    pub fn new(tokens: Vec<u32>, chunk: usize) -> Self {
        Self { tokens, chunk: chunk.max(1), received: None }
    }

    /// Also sums up the attention that each token receives from the prompt's last `queries`, for [`Self::into_received`].
    #[must_use]
    pub fn collecting(mut self, queries: usize) -> Self {
        self.received = Some(ReceivedAttention::of_last(queries, self.tokens.len()));
        self
    }

    /// What each token of the prompt received, summed over layers and heads, once the pass is done; none if it was not
    /// collected.
    #[must_use]
    pub fn into_received(self) -> Option<Vec<f32>> {
        self.received.map(|received| received.sums)
    }

    /// Runs the next chunk after what `cache` holds; the range says which tokens it was.
    ///
    /// # Errors
    /// What the model refuses.
    pub fn advance(
        &mut self,
        llama: &Llama,
        cache: &mut KvCache<bf16>,
        sampling: &Sampling,
    ) -> model::Result<(Range<usize>, Progress)> {
        let start = cache.len();
        let end = (start + self.chunk).min(self.tokens.len());
        let tokens = &self.tokens[start..end];
        let received = self.received.as_mut();
        let logits = llama.forward(&mut [Sequence { cache, tokens, received }], LogitsOf::LastToken)?;
        let progress = if end < self.tokens.len() {
            Progress::More
        } else {
            Progress::FirstToken(sampling.draw(&logits, end))
        };
        Ok((start..end, progress))
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

/// Copies a decoded block into a cache at its place.
///
/// # Errors
/// For a block that does not fit.
pub fn import(cache: &mut KvCache<bf16>, block: &KvBlock) -> model::Result<()> {
    let tokens = block.first_token..block.first_token + block.tokens;
    cache.write_range(tokens, &block.keys, &block.values)
}
