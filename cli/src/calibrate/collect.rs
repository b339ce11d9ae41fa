//! Runs sample documents through the model and hands out their caches as rows.

use half::bf16;
use indicatif::ProgressBar;
use model::{Draws, KvCache};
use node::compute::Received;
use node::prompt::{Progress, export};
use node::{Loaded, PromptPass};

use super::documents::Documents;

/// Attention sinks: the codec sends them exact, so they have no place in its statistics.
pub(super) const SINK_TOKENS: usize = 4;
const CHUNK: usize = 512;

/// How much something was measured on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) documents: usize,
    /// Without sinks.
    pub(crate) tokens: usize,
}

/// One document's cache, without the sinks.
#[derive(Debug)]
pub(crate) struct Document {
    /// The whole document.
    pub(crate) ids: Vec<u32>,
    /// `[tokens - sinks, features]`, RoPE undone.
    pub(crate) keys: Vec<f32>,
    /// `[tokens - sinks, features]`.
    pub(crate) values: Vec<f32>,
    /// One per token, as if the document were a prompt.
    pub(crate) shifts: Vec<i8>,
}

impl Document {
    /// Runs a document through the model; `layers` says what their attention is worth.
    pub(crate) fn run(loaded: &Loaded, ids: Vec<u32>, layers: Option<&[f32]>) -> anyhow::Result<Self> {
        let mut cache = KvCache::<bf16>::new(loaded.llama.config(), ids.len());
        let mut pass = PromptPass::new(ids.clone(), CHUNK).collecting(layers);
        while pass.advance(&loaded.llama, &mut cache, &Draws::GREEDY)?.1 == Progress::More {}
        let (keys, values) = codec::fit::rows(&export(&cache, SINK_TOKENS..ids.len())?, &loaded.layout)?;
        let shifts = pass.into_received().map(Received::shifts).transpose()?.unwrap_or_default();
        Ok(Self { ids, keys, values, shifts })
    }

    /// Ids of the rows' tokens, after those of `lead` sinks.
    pub(crate) fn row_ids(&self, lead: usize) -> &[u32] {
        &self.ids[SINK_TOKENS - lead.min(SINK_TOKENS)..]
    }

    /// Shifts of the rows' tokens.
    pub(crate) fn row_shifts(&self) -> &[i8] {
        &self.shifts[SINK_TOKENS..]
    }
}

/// Hands documents to `take` until `wanted` tokens or `most` documents were seen or the texts are used up.
pub(crate) fn collect(
    loaded: &Loaded,
    documents: &mut Documents<'_>,
    (wanted, most): (usize, usize),
    progress: &ProgressBar,
    mut take: impl FnMut(Document) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let mut seen = Sample::default();
    while seen.tokens < wanted && seen.documents < most {
        let Some(ids) = documents.next()? else { break };
        let count = ids.len() - SINK_TOKENS;
        take(Document::run(loaded, ids, None)?)?;
        seen.documents += 1;
        seen.tokens += count;
        progress.inc(count as u64);
    }
    Ok(seen)
}
