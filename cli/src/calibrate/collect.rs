//! Runs sample documents through the model and hands out their caches as rows.

use half::bf16;
use indicatif::ProgressBar;
use model::{KvCache, Sampling};
use node::prompt::{Progress, export};
use node::{Loaded, PromptPass};
use openai::Tokenizer;

/// Longest document of the short half, in tokens.
const SHORT_TOKENS: usize = 1024;
/// Shorter documents say nothing about long contexts.
const MIN_TOKENS: usize = 64;
/// Attention sinks: the codec sends them exact, so they have no place in its statistics.
const SINK_TOKENS: usize = 4;
const CHUNK: usize = 512;

/// Documents cut so that half of the tokens come from short ones and half from long ones.
#[derive(Debug)]
pub(crate) struct Documents<'a> {
    texts: std::slice::Iter<'a, String>,
    tokenizer: &'a Tokenizer,
    long_tokens: usize,
    short_seen: usize,
    long_seen: usize,
}

impl<'a> Documents<'a> {
    /// Over `texts` in their order; no document exceeds `long_tokens`.
    pub(crate) fn new(texts: &'a [String], tokenizer: &'a Tokenizer, long_tokens: usize) -> Self {
        Self { texts: texts.iter(), tokenizer, long_tokens, short_seen: 0, long_seen: 0 }
    }

    /// Next document's tokens, none when the texts are used up.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Vec<u32>>> {
        for text in self.texts.by_ref() {
            let mut tokens = self.tokenizer.encode(text)?;
            let want_long = self.long_seen < self.short_seen;
            tokens.truncate(if want_long { self.long_tokens } else { SHORT_TOKENS.min(self.long_tokens) });
            if tokens.len() < MIN_TOKENS {
                continue;
            }
            let seen = if tokens.len() > SHORT_TOKENS { &mut self.long_seen } else { &mut self.short_seen };
            *seen += tokens.len();
            return Ok(Some(tokens));
        }
        Ok(None)
    }
}

/// Keys and values of one document's tokens after the sinks, `[tokens, features]` each, keys with RoPE undone.
pub(crate) fn rows(loaded: &Loaded, tokens: Vec<u32>) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
    let count = tokens.len();
    let mut cache = KvCache::<bf16>::new(loaded.llama.config(), count);
    let mut pass = PromptPass::new(tokens, CHUNK);
    while pass.advance(&loaded.llama, &mut cache, &Sampling::GREEDY)?.1 == Progress::More {}
    let block = export(&cache, SINK_TOKENS..count)?;
    Ok(codec::fit::rows(&block, &loaded.layout)?)
}

/// Hands the rows of documents to `take` until `wanted` tokens were seen or the texts are used up.
pub(crate) fn collect(
    loaded: &Loaded,
    documents: &mut Documents<'_>,
    wanted: usize,
    progress: &ProgressBar,
    mut take: impl FnMut(&[f32], &[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let mut seen = 0;
    while seen < wanted {
        let Some(tokens) = documents.next()? else { break };
        let count = tokens.len() - SINK_TOKENS;
        let (keys, values) = rows(loaded, tokens)?;
        take(&keys, &values)?;
        seen += count;
        progress.inc(count as u64);
    }
    Ok(seen)
}
